"""A study on disk has one owner: its file names are literals in one module, and what is damaged is noticed."""

import ast
import json
import os
import random
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from jobs import FINETUNED, Notes, searching, stored

import lrsearch
from lrsearch.compress import artifact
from lrsearch.errors import LrsearchError
from lrsearch.spec import atomic
from lrsearch.spec.blobs import LocalStore
from lrsearch.study import workers as workers_module
from lrsearch.study.recovered import read_finished
from lrsearch.study.study_folder import StudyFolder
from lrsearch.study.workers import Workers
from lrsearch.workflows.steps.export_folder import read_front

ROOT = Path(lrsearch.__file__).parent
OWNER = ROOT / "study" / "study_folder.py"
NAMES = {
    "study.db", "study.json", "lrsearch-study.json", "space.json", "latency.json", "latency_front.json", "latency_late.json",
    "fidelity.json", "fidelity.html", "search.log", "storage.json", "turn.lock", "turn.json", "study.lock", "front.csv", "front.parquet",
    "report.html", "losses", "paused", "workers",
}


def literals(path):
    """The texts in ``path`` that are no docstrings."""
    tree = ast.parse(path.read_text())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docs = {id(n.body[0].value) for n in ast.walk(tree) if isinstance(n, documented) and n.body and isinstance(n.body[0], ast.Expr)}
    return {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str) and id(n) not in docs}


def test_the_names_of_a_studys_files_are_in_one_module():
    holders = {p.relative_to(ROOT).as_posix() for p in ROOT.rglob("*.py") if p != OWNER and literals(p) & NAMES}
    assert not holders
    assert literals(OWNER) & NAMES


def test_files_are_put_in_place_by_one_function():
    movers = {p.relative_to(ROOT).as_posix() for p in ROOT.rglob("*.py") if "os.replace(" in p.read_text()}
    assert movers == {"spec/atomic.py", "compress/artifact.py", "workflows/steps/export_folder.py"}  # two move folders


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    atomic.write_whole(path, "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        atomic.write_whole(path, "new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.txt", "old")]


def test_processes_that_write_the_same_file_do_not_meet(tmp_path):
    with atomic.whole_file(tmp_path / "a") as first, atomic.whole_file(tmp_path / "a") as second:
        assert first != second
        first.write_text("1")
        second.write_text("2")
    assert (tmp_path / "a").read_text() == "1"


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b'{"sha256": "0", "a": 1}', b'{"a": 1', b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_json_file_is_an_empty_one(tmp_path, damage):
    path = tmp_path / "a.json"
    atomic.write_json(path, {"a": [1, 2.5, None]})
    assert atomic.read_json(path) == {"a": [1, 2.5, None]}
    path.write_bytes(damage)
    assert atomic.read_json(path) == {}


def test_a_json_file_of_before_the_seals_is_read(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert atomic.read_json(tmp_path / "a.json") == {"a": 1}
    atomic.write_json(tmp_path / "a.json", {"a": 1})
    (tmp_path / "a.json").write_text((tmp_path / "a.json").read_text().replace('"a": 1', '"a": 2'))
    assert atomic.read_json(tmp_path / "a.json") == {}


@pytest.mark.parametrize("seed", range(5))
def test_every_damaged_blob_counts_as_not_there(tmp_path, seed):
    store, rng = LocalStore(tmp_path), random.Random(seed)
    store.put("kind/one", data := rng.randbytes(1000))
    assert (store.get("kind/one"), store.local("kind/one"), store.list("kind/")) == (data, tmp_path / "kind/one", ["kind/one"])
    for where in ("kind/one", "seals/kind/one"):
        store.put("kind/one", data)
        damaged(tmp_path / where, rng)
        assert (store.get("kind/one"), LocalStore(tmp_path).local("kind/one"), store.exists("kind/one")) == (None, None, True)
    store.remove("kind/one")
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
    store.remove("kind/one")


def damaged(path, rng):
    """Flip a bit of the file, or cut it off."""
    data = bytearray(path.read_bytes() or b"x")
    if rng.random() < 0.5:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    else:
        del data[rng.randrange(len(data)) :]
    path.write_bytes(bytes(data))


KINDS = [
    "lrsearch-study.json", "study.json", "study.db", "space.json", "front.csv", "front.parquet", "report.html", "search.log", "turn.json",
    "losses/*", "seals/losses/*", "models/*/plan.json", "models/*/weights.safetensors",
]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(2))
def test_a_study_with_a_damaged_file_ends_whole_or_is_refused_in_one_line(job, result, kind, seed):
    rng = random.Random(f"{kind} {seed}")
    path = rng.choice(sorted(job["out"].glob(kind)))
    damaged(path, rng)
    try:
        again = lrsearch.search(**searching(job, trials=4))
    except LrsearchError as error:
        assert "\n" not in str(error) and kind in ("study.db", "study.json", "lrsearch-study.json")  # noqa: PT017, PT018
        return
    again.load(0)
    assert set(result.trials.trial) <= set(again.trials.trial)
    assert len(again.front) == (again.trials.on_front).sum()
    assert all(artifact.whole(job["out"] / model) for model in again.front.model)


@pytest.mark.slow
def test_a_damaged_profile_is_made_again_and_gives_the_same_front(job, monkeypatch, tmp_path):
    monkeypatch.setenv("LRSEARCH_CACHE", str(tmp_path / "cache"))
    first = lrsearch.search(**job)
    files = sorted(p for p in (tmp_path / "cache" / "profiles").rglob("*") if p.is_file() and p.suffix != ".lock")
    assert len(files) > 4
    for seed, path in enumerate(files):
        was = path.read_bytes()
        damaged(path, random.Random(seed))
        shutil.rmtree(job["out"])
        assert lrsearch.search(**job).trials.equals(first.trials), path
        assert path.read_bytes() == was


SEARCH = """
import sys, torch, lrsearch
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 3))
x, y = torch.randn(90, 12), torch.arange(90) % 3
result = lrsearch.search(model, calibration=(x[:40], y[:40]), score=(x[40:], y[40:]), out=sys.argv[1],
                         budget=lrsearch.Budget(params=0.6), search={"trials": 2, "control_points": 1})
print(result.front.divergence.round(6).tolist())
"""


@pytest.mark.slow
def test_two_studies_of_one_model_begin_with_a_cold_cache(tmp_path):
    environment = {**os.environ, "LRSEARCH_CACHE": str(tmp_path / "cache")}
    begun = [
        subprocess.Popen(
            [sys.executable, "-c", SEARCH, tmp_path / name], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for name in "ab"
    ]
    ended = [(*process.communicate(timeout=300), process.returncode) for process in begun]
    assert [code for *_, code in ended] == [0, 0], ended
    assert ended[0][0].splitlines()[-1] == ended[1][0].splitlines()[-1]  # the front, behind the progress
    assert not [p for p in tmp_path.rglob("*") if atomic.WRITING in p.name]


def test_a_profile_that_another_process_builds_is_waited_for(job, monkeypatch, tmp_path):
    """Two studies in two threads: each layer is fitted once."""
    from lrsearch.profile import build as module

    monkeypatch.setenv("LRSEARCH_CACHE", str(tmp_path / "cache"))
    swept, sweep = [], module.sweep
    monkeypatch.setattr(module, "sweep", lambda w, layer, *rest: swept.append(layer.name) or sweep(w, layer, *rest))
    found = {}
    threads = [
        threading.Thread(target=lambda n=name: found.update({n: lrsearch.search(**{**job, "out": tmp_path / n})})) for name in ("a", "b")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(swept) == len(set(swept))
    assert found["a"].front.divergence.tolist() == found["b"].front.divergence.tolist()


def test_a_worker_that_keeps_its_turn_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(workers_module, "PATIENCE", 0.05)
    told, waiting = Notes(), threading.Event()
    slow = Workers(tmp_path)
    note = lambda text: (told.note(text), waiting.set())  # noqa: E731
    with slow.turn, slow.turn:
        other = threading.Thread(target=lambda: Workers(tmp_path, note).turn.__enter__())
        other.start()
        assert waiting.wait(60)
    other.join()
    assert f"worker {slow.name} (process {os.getpid()}) has had its turn" in told.notes[0]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_models_have_the_users_mode(job, mask):
    before = os.umask(mask)
    try:
        found = lrsearch.search(**searching(job, trials=1, control_points=1))
    finally:
        os.umask(before)
    assert {stat.S_IMODE((job["out"] / model).stat().st_mode) for model in found.front.model} == {0o777 & ~mask}


def test_the_front_comes_from_the_trials(job, result):
    config = result._config
    for name in ("front.parquet", "front.csv", "report.html"):
        (job["out"] / name).unlink()
    found = read_front(job["out"], config)
    assert found.equals(result.front)
    with closing(sqlite3.connect(job["out"] / "study.db")) as database, database:  # as older studies are
        database.execute("DELETE FROM study_user_attributes WHERE key = 'dense'")
    assert "dense" not in stored(job["out"]).user_attrs
    assert read_front(job["out"], config).equals(result.front)
    assert read_finished(StudyFolder(job["out"])).baseline == result.baseline


def test_a_front_is_written_whole_or_not_at_all(job, result, monkeypatch):
    before = {name: (job["out"] / name).read_bytes() for name in ("front.csv", "front.parquet", "report.html")}
    monkeypatch.setattr("lrsearch.workflows.result.page", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        result.write()
    assert {name: (job["out"] / name).read_bytes() for name in before} == before


def older(folder):
    """Make a study one of schema 1: no seals, and its weights were called storage."""
    shutil.rmtree(folder / "seals")
    (folder / "lrsearch-study.json").write_text('{"schema": 1}')
    study = stored(folder)
    identity = study.user_attrs["identity"]
    config = {"storage" if k == "weights" else k: v for k, v in identity["config"].items() if k != "output"}
    identity = {**identity, "config": config, "fingerprint": "of another version"}
    study.set_user_attr("identity", identity)
    (folder / "study.json").write_text(json.dumps(identity))


def test_an_older_study_goes_on_with_its_losses_and_with_settings_that_came_later(job, result, calls):
    older(job["out"])
    assert lrsearch.search(**job).trials.equals(result.trials)
    assert calls == []
    study = StudyFolder(job["out"])
    names = study.blobs.list("losses/")
    assert names
    assert all(study.blobs.get(name) is not None for name in names)
    assert json.loads(study.identity.read_text())["config"]["weights"] == {"values": "float32"}
    older(job["out"])
    with pytest.raises(LrsearchError, match=r"config\.weights\.values was 'float32', is 'int8'"):
        lrsearch.search(**{**job, "weights": {"values": "int8"}})


def test_storage_is_the_former_name_of_weights(job, caplog):
    job = searching(job, trials=1, control_points=1)
    lrsearch.search(**job, storage={"values": "float16"})
    assert "is called weights" in caplog.text
    assert lrsearch.search(**job, weights={"values": "float16"}).front is not None
    with pytest.raises(LrsearchError, match="former name of weights"):
        lrsearch.search(**job, weights={"values": "float16"}, storage={"values": "float16"})


def test_damaged_finetunes_and_losses_cost_time_alone(job, calls):
    job = {**job, **FINETUNED}
    calls.fail = lambda count: (_ for _ in ()).throw(KeyboardInterrupt) if count == 7 else None
    with pytest.raises(KeyboardInterrupt):
        lrsearch.search(**job)
    rng = random.Random(0)
    for path in [*(job["out"] / "paused").glob("*"), *(job["out"] / "losses").glob("*")]:
        damaged(path, rng)
    calls.fail = lambda count: None
    found = lrsearch.search(**job)
    assert (found.trials.source == "search").sum() == job["search"]["trials"]
    assert np.isfinite(found.front.divergence).all()
