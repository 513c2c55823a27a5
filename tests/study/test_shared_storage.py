"""Where trials are: what a URL may be, and that its secrets are nowhere."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from jobs import searching
from optuna.trial import TrialState

import lrsearch
from lrsearch.errors import StudyError
from lrsearch.study import storage as module
from lrsearch.study.storage import PASSWORD, Place, place_of, read_url, settle
from lrsearch.study.stored_trials import open_storage
from lrsearch.study.study_folder import StudyFolder

SECRETS = ["postgresql://me:hush%2F1@host/db", "mysql://me@host/db?password=hush/1", "postgresql+psycopg://me@host/db?sslpassword=hush/1"]


@pytest.fixture(autouse=True)
def told(monkeypatch):
    monkeypatch.setattr(module, "_told", {})


@pytest.mark.parametrize("url", SECRETS)
def test_a_folder_keeps_a_url_without_its_secrets(tmp_path, url):
    folder = StudyFolder(tmp_path)
    settle(folder, url, "mine", None)
    place = place_of(folder)
    assert "hush" in place.url.render_as_string(hide_password=False)
    assert "hush" not in f"{place} {place!r} {folder.pointer.read_text()}"
    assert place.study == "mine"
    module._told.clear()
    assert "hush" not in place_of(folder).url.render_as_string(hide_password=False)


def test_the_password_may_come_from_the_environment(tmp_path, monkeypatch):
    settle(StudyFolder(tmp_path), "postgresql://me@host/db", "mine", None)
    monkeypatch.setenv(PASSWORD, "hush")
    assert place_of(StudyFolder(tmp_path)).url.password == "hush"


@pytest.mark.parametrize("url", ["hush", "sqlite:///hush?password=hush", "redis://:hush@host/0", "postgresql://me:hush@host", "://hush:"])
def test_what_is_no_shared_storage_is_refused_without_its_secrets(url):
    with pytest.raises(StudyError, match="must be a storage that machines share") as refused:
        read_url(url)
    assert "hush" not in str(refused.value).replace("sqlite:///hush", "")


def test_a_database_that_is_not_there_is_one_line_without_the_password_and_leaves_nothing(job, capsys):
    pytest.importorskip("psycopg", reason="needs the driver: pip install 'lrsearch[postgresql]'")
    with pytest.raises(StudyError, match="must be an Optuna storage") as refused:
        lrsearch.search(**job, storage="postgresql://me:hush@127.0.0.1:1/db")
    assert "\n" not in str(refused.value)
    assert "hush" not in f"{refused.value}{refused.value.__cause__}{''.join(capsys.readouterr())}"
    assert not job["out"].exists()


def test_a_database_without_its_driver_says_which(tmp_path, monkeypatch):
    monkeypatch.setitem(module._DRIVERS, "postgresql", "postgresql+pg8000")
    place = Place(read_url("postgresql://host/db"), "mine")
    with pytest.raises(StudyError, match=r"Install it: pip install 'lrsearch\[postgresql\]'"), module.reading(place, ""):
        module.opened(place)


def test_a_damaged_pointer_is_refused(tmp_path):
    StudyFolder(tmp_path).pointer.write_text(json.dumps({"sha256": "0", "url": "postgresql://other/db", "study": "x"}))
    with pytest.raises(StudyError, match=r"storage\.json.*must be as lrsearch wrote it"):
        place_of(StudyFolder(tmp_path))


def test_two_machines_share_a_journal(job, calls, tmp_path):
    both = threading.Barrier(2)
    calls.fail = lambda count: both.wait(300) if count <= 2 else None
    job = {**searching(job, control_points=1), "storage": f"journal:///{tmp_path}/shared.log", "artifacts": str(tmp_path / "blobs")}
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda name: lrsearch.search(**{**job, "out": tmp_path / name}), "ab")
    trials = open_storage(StudyFolder(tmp_path / "a")).get_trials()
    assert first.trials.equals(second.trials)
    assert {t.state for t in trials} == {TrialState.COMPLETE}
    assert len({t.user_attrs["worker"] for t in trials}) == 2
    assert not [*tmp_path.glob("[ab]/study.db")]
    calls.clear()
    assert lrsearch.search(**{**job, "out": tmp_path / "c"}).front.equals(first.front)
    assert calls == []
