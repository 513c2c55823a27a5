"""A study goes from SQLite to PostgreSQL and back with all its trials, and is at one place at a time."""

import optuna
import pytest
from jobs import searching, stored

import lrsearch
from lrsearch.cli.main import main
from lrsearch.errors import StudyError
from lrsearch.study import moving
from lrsearch.study.losses import LOSSES, Losses
from lrsearch.study.moving import into_folder, into_storage
from lrsearch.study.storage import Place, opened, read_url
from lrsearch.study.stored_trials import open_storage
from lrsearch.study.study_folder import StudyFolder

pytestmark = pytest.mark.machines


def facts(study):
    return [{k: without_losses(v) if k == "_user_attrs" else v for k, v in vars(t).items() if k != "_trial_id"} for t in study.get_trials()]


def without_losses(attributes):
    return {k: v for k, v in attributes.items() if not k.startswith(LOSSES)}


def test_a_study_moves_there_and_back_with_equal_trials(job, result, server, shared, calls, capsys):
    folder, name = StudyFolder(job["out"]), shared["name"]
    before, attributes = facts(stored(folder.path)), stored(folder.path).user_attrs
    assert main(["move", str(folder.path), server.url, "--name", name]) == 0
    assert capsys.readouterr().out == f"moved {len(before)} trials\n"
    there = open_storage(folder)
    assert facts(there) == before
    assert {**there.user_attrs, "moved": None} == {**attributes, "moved": None}
    told = Losses(folder)
    told.hear(there.get_trials())
    files = {folder.path / folder.losses_name(*key): data for key, data in told._told.items()}
    assert {path: path.read_bytes() for path in (folder.path / "losses").iterdir()} == files
    assert there.metric_names == stored(folder.path).metric_names
    with pytest.raises(StudyError, match="a study must not be written over|the study must be there"):
        into_storage(folder, server.url, name)
    assert lrsearch.search(**job).trials.equals(result.trials)
    assert calls == []
    more = lrsearch.search(**searching(job, trials=4))
    assert main(["move", server.url, str(folder.path), "--name", name]) == 0
    assert len(facts(stored(folder.path))) == len(before) + 1
    assert not folder.pointer.exists()
    with pytest.raises(StudyError, match="moved to"):
        lrsearch.search(**{**searching(shared, trials=5), "out": folder.path.with_name("other")})
    assert lrsearch.search(**searching(job, trials=4)).trials.equals(more.trials)
    into_storage(folder, server.url, name)  # over what was left there
    assert lrsearch.search(**searching(job, trials=4)).trials.equals(more.trials)


def test_a_study_moves_into_a_new_folder(shared, server, tmp_path):
    found = lrsearch.search(**searching(shared, trials=1, control_points=1))
    new = tmp_path / "new"
    into_folder(server.url, shared["name"], StudyFolder(new))
    job = {k: v for k, v in searching(shared, trials=1, control_points=1).items() if k != "storage"}
    assert lrsearch.search(**{**job, "out": new}).trials.equals(found.trials)


def test_a_move_that_was_killed_is_repeated(job, result, server, shared, monkeypatch):
    folder, name, before = StudyFolder(job["out"]), shared["name"], facts(stored(job["out"]))
    copied = moving._copied

    def killed(*arguments):
        copied(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(moving, "_copied", killed)
    with pytest.raises(KeyboardInterrupt):
        into_storage(folder, server.url, name)
    monkeypatch.undo()
    with pytest.raises(StudyError, match="repeat lrsearch move"):
        lrsearch.search(**job)
    with pytest.raises(StudyError, match="repeat lrsearch move"):
        lrsearch.search(**{**shared, "out": folder.path.with_name("other")})
    into_storage(folder, server.url, name)
    assert facts(open_storage(folder)) == before


def test_a_study_with_workers_does_not_move(shared, server, tmp_path):
    lrsearch.search(**searching(shared, trials=1, control_points=1))
    storage = opened(Place(read_url(server.url), shared["name"]))
    study = optuna.load_study(study_name=shared["name"], storage=storage)
    storage.record_heartbeat(study.ask()._trial_id)
    with pytest.raises(StudyError, match="nobody may search a study that moves; got 1 trials under way"):
        into_folder(server.url, shared["name"], StudyFolder(tmp_path / "new"))
