"""A study in PostgreSQL: the same front as in the folder, one study for all workers, and no password anywhere."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from jobs import FINETUNED, Notes, searching
from optuna.trial import TrialState
from servers import PASSWORD

import lrsearch
from lrsearch.errors import StudyError
from lrsearch.study.stored_trials import open_storage
from lrsearch.study.study_folder import StudyFolder

pytestmark = pytest.mark.machines


def trials_of(job):
    return open_storage(StudyFolder(job["out"])).get_trials(deepcopy=False)


@pytest.mark.parametrize("settings", [{}, FINETUNED], ids=["fitted", "finetuned"])
def test_a_study_in_a_database_finds_what_it_finds_in_its_folder(job, shared, settings, tmp_path, calls):
    here = lrsearch.search(**{**job, **settings, "out": tmp_path / "here", "name": shared["name"]})
    there = lrsearch.search(**{**shared, **settings})
    assert there.trials.equals(here.trials)
    assert not (shared["out"] / "study.db").exists()
    calls.clear()
    again = lrsearch.search(**{k: v for k, v in {**shared, **settings}.items() if k != "storage"})  # the folder knows
    assert calls == []
    assert again.trials.equals(there.trials)
    assert lrsearch.open(shared["out"]).front.equals(there.front)


def test_no_file_and_no_message_has_the_password(shared, server, capfd, caplog):
    told = Notes()
    lrsearch.search(**searching(shared, trials=1, control_points=1), progress=told)
    other = server.url.replace("s3cret", "wrong")
    with pytest.raises(StudyError, match="password authentication failed") as refused:
        lrsearch.search(**{**shared, "storage": other, "out": shared["out"].with_name("other")})
    said = [*told.notes, *capfd.readouterr(), caplog.text, str(refused.value), repr(refused.value.__cause__)]
    files = [path.read_bytes() for path in shared["out"].parent.rglob("*") if path.is_file()]
    for secret in (PASSWORD, server.url.split(":")[2].split("@")[0], "s3cret", "wrong-"):
        assert not [text for text in said if secret in text]
        assert not [data for data in files if secret.encode() in data]
    assert not shared["out"].with_name("other").exists()


def test_the_password_may_come_from_the_environment(shared, server, monkeypatch):
    monkeypatch.setenv("LRSEARCH_STORAGE_PASSWORD", PASSWORD)
    url = server.url.replace(f":{server.url.split(':')[2].split('@')[0]}@", "@") + "?application_name=mine"
    assert "s3cret" not in url
    assert len(lrsearch.search(**{**searching(shared, trials=1, control_points=1), "storage": url}).trials) > 1


def beside(job, folders, calls):
    """The results of searches in two folders that were both evaluating something when they began."""
    both = threading.Barrier(2)
    calls.fail = lambda count: both.wait(300) if count <= 2 else None
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda folder: lrsearch.search(**{**job, "out": folder}), folders))


@pytest.mark.parametrize("settings", [{}, FINETUNED], ids=["fitted", "finetuned"])
def test_two_machines_share_a_study(shared, calls, settings, tmp_path):
    job, folders = {**shared, **settings}, [tmp_path / "a", tmp_path / "b"]
    first, second = beside(job, folders, calls)
    done = [t for t in trials_of({"out": folders[0]}) if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert (first.trials.source == "search").sum() == job["search"]["trials"]
    assert first.trials.equals(second.trials)
    assert len({t.user_attrs["worker"] for t in done}) == 2
    assert {t.state.name for t in trials_of({"out": folders[0]})} <= {"COMPLETE", "PRUNED"}
    rungs = [(t.user_attrs["continues"], t.user_attrs["rung"]) for t in done if "continues" in t.user_attrs]
    assert len(set(rungs)) == len(rungs)


def test_another_study_of_the_same_name_is_refused(shared, server):
    lrsearch.search(**searching(shared, trials=1, control_points=1))
    x, y = shared["score"]
    with pytest.raises(StudyError, match=r"must belong to this configuration; got inputs\.data"):
        lrsearch.search(**{**searching(shared, trials=1, control_points=1), "score": (x + 1, y), "out": shared["out"].with_name("b")})
    assert not shared["out"].with_name("b").exists()


def test_a_folder_has_its_trials_in_one_place(job, result, shared):
    with pytest.raises(StudyError, match="the trials of a study folder are in one place"):
        lrsearch.search(**{**shared, "name": "study"})
