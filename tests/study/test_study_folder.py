"""Whose a folder is: a study is made by lrsearch and marked, and nothing else is written to or removed."""

import json
import shutil
import sqlite3

import pytest
import torch
from jobs import searching, states, stored
from torch import nn

import lrsearch
from lrsearch.errors import BudgetError, ConfigError, DataError, LrsearchError, ModelError, StudyError
from lrsearch.study.workers import Workers, alone, working

FOREIGN = "must be a study that lrsearch made, or an empty folder"
ODD = ["a b", "100%", "x?y=1", "q#frag", "[ab]*", "ü", "a;b", "%41", "{x}"]


def everything(folder):
    """Every path below ``folder`` with what is in it; links as links."""
    return {
        str(p.relative_to(folder)): f"-> {p.readlink()}" if p.is_symlink() else p.read_bytes() if p.is_file() else None
        for p in folder.rglob("*")
    }


@pytest.fixture
def precious(tmp_path):
    """A project of the user's with the names that a study uses."""
    folder = tmp_path / "project"
    names = "models/0001/weights.bin", "models/mine.pt", "paused/notes.txt", "workers/list.txt", "front.csv", "study.json", "study.db"
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"my {name}")
    return folder


def forget(folder):
    """Make a study one of before the mark and before its trials said what they are of."""
    (folder / "lrsearch-study.json").unlink()
    with sqlite3.connect(folder / "study.db") as database:
        database.execute("DELETE FROM study_user_attributes")


@pytest.mark.parametrize("through", ["folder", "link"])
def test_a_folder_that_is_no_study_is_refused_and_left_alone(job, precious, through):
    if through == "link":
        job["out"].symlink_to(precious)
    before = everything(precious)
    with pytest.raises(StudyError, match=FOREIGN):
        lrsearch.search(**{**job, "out": job["out"] if through == "link" else precious})
    assert everything(precious) == before


@pytest.mark.parametrize("use", [working, alone])
@pytest.mark.parametrize("text", ["[1]", "not JSON", '{"fingerprint": "x"}', '{"schema": 1}'])
def test_a_study_json_of_another_program_is_no_mark(tmp_path, use, text):
    (tmp_path / "study.json").write_text(text)
    with pytest.raises(StudyError, match=FOREIGN), use(tmp_path):
        pass
    assert everything(tmp_path) == {"study.json": text.encode()}


def test_the_working_directory_is_refused(job, precious, monkeypatch):
    monkeypatch.chdir(precious)
    before = everything(precious)
    with pytest.raises(StudyError, match=FOREIGN):
        lrsearch.search(**{**job, "out": "."})
    assert everything(precious) == before


def test_a_study_is_marked_and_one_of_another_schema_refused(job, result):
    mark = job["out"] / "lrsearch-study.json"
    assert json.loads(mark.read_text()) == {"schema": 2}
    mark.write_text('{"schema": 3}')
    before = everything(job["out"])
    with pytest.raises(StudyError, match="must be of schema 2 or older; got schema 3"):
        lrsearch.search(**job)
    assert everything(job["out"]) == before


def test_an_older_study_is_accepted_marked_and_its_trials_told(job, result, calls):
    forget(job["out"])
    again = lrsearch.search(**job)
    assert calls == []
    assert again.trials.equals(result.trials)
    assert json.loads((job["out"] / "lrsearch-study.json").read_text()) == {"schema": 2}
    kept = json.loads((job["out"] / "study.json").read_text())
    assert stored(job["out"]).user_attrs["identity"].items() <= kept.items()


def test_what_the_study_did_not_make_stays_when_it_tidies(job, result, precious):
    out = job["out"]
    (out / "models" / "mine").mkdir()
    (out / "models" / "mine" / "weights.bin").write_text("mine")
    (out / "models" / "0000-polished").mkdir()
    (out / "models" / "notes.txt").write_text("mine")
    (out / "models" / "9999").symlink_to(precious)
    (out / "models" / "9998").mkdir()
    (out / "models" / "9998" / "notes.txt").write_text("mine")
    (out / "models" / "9998" / "plan.json").write_text("of a plan that left the front")
    (out / "models" / ".writing-abc_1-old").mkdir()
    (out / "paused").mkdir(exist_ok=True)
    for name in ("notes.txt", "7.pt", "0007.pt", "0008.writing"):
        (out / "paused" / name).write_text("mine")
    (out / "workers" / "list.txt").write_text("mine")
    (out / "workers" / ("0" * 32)).write_text("")
    (out / "workers" / ("1" * 32)).symlink_to(precious / "front.csv")
    before = everything(precious)
    lrsearch.search(**searching(job, trials=4))
    kept = {p.relative_to(out).as_posix() for part in ("models", "paused", "workers") for p in (out / part).iterdir()}
    assert kept >= {"models/mine", "models/0000-polished", "models/notes.txt", "models/9999", "models/9998", "paused/notes.txt",
                    "paused/7.pt", "workers/list.txt", f"workers/{'1' * 32}"}
    assert not kept & {"models/.writing-abc_1-old", "paused/0007.pt", "paused/0008.writing", f"workers/{'0' * 32}"}
    assert everything(out / "models" / "9998") == {"notes.txt": b"mine"}
    assert everything(precious) == before


LINKS = ["models", "paused", "workers", "losses", "front.csv", "space.json.writing", "turn.lock", "losses/0000-0.f16"]


@pytest.mark.parametrize("name", LINKS)
def test_links_where_a_study_writes_are_refused_and_not_followed(job, result, precious, name):
    own, target = job["out"] / name, precious / ("models" if "." not in name else "front.csv")
    shutil.rmtree(own) if own.is_dir() else own.unlink(missing_ok=True)
    own.symlink_to(target)
    before = everything(precious)
    with pytest.raises(StudyError, match=rf"{name}: a study writes to no links"):
        lrsearch.search(**searching(job, trials=4))
    assert everything(precious) == before


def test_a_worker_of_a_foreign_name_is_not_looked_for(tmp_path):
    (tmp_path / "run" / "workers").mkdir(parents=True)
    (tmp_path / "mine.txt").write_text("mine")
    assert not Workers(tmp_path / "run").alive("../../mine.txt")
    assert (tmp_path / "mine.txt").read_text() == "mine"


REFUSED = {
    "budget": (BudgetError, lambda job: {**job, "budget": lrsearch.Budget(params=0.01)}),
    "model": (ModelError, lambda job: {**job, "model": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())}),
    "overlap": (DataError, lambda job: {**job, "score": job["calibration"]}),
    "device": (ConfigError, lambda job: {**job, "device": "abacus"}),
    "labels": (DataError, lambda job: {**job, "score": (torch.randn(3, 3, 12, 12), torch.tensor([0, 1, 4]))}),
}


@pytest.mark.parametrize("why", REFUSED)
@pytest.mark.parametrize("there", [False, True])
def test_a_refused_study_leaves_nothing_behind(job, tmp_path, why, there):
    kind, change = REFUSED[why]
    out = tmp_path / "deep" / "er" / "run"
    if there:
        out.mkdir(parents=True)
    before = everything(tmp_path)
    with pytest.raises(kind):
        lrsearch.search(**{**change(job), "out": out})
    assert everything(tmp_path) == before


def test_a_refused_study_leaves_those_alone_that_work_beside_it(job):
    with working(job["out"]) as other:
        with pytest.raises(BudgetError):
            lrsearch.search(**{**job, "budget": lrsearch.Budget(params=0.01)})
        assert Workers(job["out"]).alive(other.name)
    assert not job["out"].exists()


@pytest.mark.parametrize("name", ["", " ", ".", "..", "../../x", "/x", "a/b", "a\\b", "a\0b"])
def test_a_name_that_leads_elsewhere_is_refused(job, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    before = everything(tmp_path)
    with pytest.raises(ConfigError, match="name: must be a name of printable characters without slashes"):
        lrsearch.search(**{**job, "out": None, "name": name})
    assert everything(tmp_path) == before


def test_a_path_with_a_nul_is_one_line(job):
    with pytest.raises(StudyError, match="null byte"):
        lrsearch.search(**{**job, "out": "a\0b"})


@pytest.mark.parametrize("name", ODD)
def test_the_database_is_in_the_folder_whatever_its_name(job, calls, tmp_path, name):
    out = tmp_path / "odd" / name
    job = {**searching(job, trials=1, control_points=1), "out": out}
    first = lrsearch.search(**job)
    assert [p.name for p in (tmp_path / "odd").iterdir()] == [name]
    with sqlite3.connect(out / "study.db") as database:
        assert database.execute("SELECT count(*) FROM trials").fetchone()[0] >= len(first.trials)
    assert lrsearch.ask(out, lrsearch.Budget(params=0.5)).best is not None
    calls.clear()
    assert lrsearch.search(**job).trials.equals(first.trials)
    assert calls == []


@pytest.mark.parametrize("lost", [None, "not JSON"])
def test_without_study_json_the_trials_say_what_they_are_of(job, result, calls, lost):
    path = job["out"] / "study.json"
    was = json.loads(path.read_text())
    path.unlink() if lost is None else path.write_text(lost)
    with pytest.raises(StudyError, match=r"config\.budget\.params was 0\.6, is 0\.5"):
        lrsearch.search(**{**job, "budget": lrsearch.Budget(params=0.5, weight_bytes=0.65)})
    assert lrsearch.search(**job).trials.equals(result.trials)
    assert calls == []
    assert {**json.loads(path.read_text()), "made": was["made"]} == was  # but for when that was


def test_a_study_json_of_another_study_does_not_make_the_trials_its_own(job, result, tmp_path):
    other = {**searching(job, trials=1, control_points=1), "budget": lrsearch.Budget(params=0.5), "out": tmp_path / "other"}
    lrsearch.search(**other)
    shutil.copyfile(tmp_path / "other" / "study.json", job["out"] / "study.json")
    before = states(job["out"])
    with pytest.raises(StudyError, match="must belong to this configuration"):
        lrsearch.search(**{**other, "out": job["out"]})
    assert states(job["out"]) == before


def test_trials_that_nothing_says_what_they_are_of_are_refused(job, result):
    forget(job["out"])
    (job["out"] / "study.json").unlink()
    (job["out"] / "lrsearch-study.json").write_text('{"schema": 1}')
    with pytest.raises(StudyError, match="must be known to be of this configuration"):
        lrsearch.search(**job)


@pytest.mark.slow
@pytest.mark.parametrize("data", [None, b"", b"not a database" * 100])
def test_a_front_whose_trials_are_lost_is_not_written_over(job, result, data):
    database = job["out"] / "study.db"
    database.unlink() if data is None else database.write_bytes(data)
    models = everything(job["out"] / "models")
    with pytest.raises(StudyError, match=r"study\.db"):
        lrsearch.search(**job)
    assert everything(job["out"] / "models") == models


def test_the_same_weights_in_another_network_are_another_study(tmp_path):
    x = torch.randn(90, 12)
    y = torch.arange(90) % 3
    first = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3))
    second = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 3))
    second.load_state_dict(first.state_dict())
    job = {"calibration": (x[:40], y[:40]), "score": (x[40:], y[40:]), "search": {"trials": 1, "control_points": 1}}
    damage = []
    lrsearch.search(first, **job, out=tmp_path / "run")
    with pytest.raises(StudyError, match=r"inputs\.computes was"):
        lrsearch.search(second, **job, out=tmp_path / "run")
    for name, model in (("run", first), ("other", second)):
        lrsearch.search(model, **job, out=tmp_path / name)
        menus = json.loads((tmp_path / name / "space.json").read_text())["menus"]
        damage.append([entry["damage"] for entry in menus["0"]])
    assert damage[0] != damage[1]


def test_a_study_of_before_the_computation_was_kept_goes_on(job, result, calls):
    from lrsearch.study import identity

    old = identity._as_before(json.loads((job["out"] / "study.json").read_text()))
    (job["out"] / "study.json").write_text(json.dumps(old))
    forget(job["out"])
    assert lrsearch.search(**job).trials.equals(result.trials)
    assert calls == []
    assert "computes" in json.loads((job["out"] / "study.json").read_text())["inputs"]


def test_a_refusal_is_one_line(job, precious):
    with pytest.raises(LrsearchError) as refused:
        lrsearch.search(**{**job, "out": precious})
    assert "\n" not in str(refused.value)
