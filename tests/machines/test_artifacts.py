"""What several machines share of large files: it is found by another worker, checked, and made again where it is gone."""

import io
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from jobs import FINETUNED, interrupt, searching
from optuna.artifacts import FileSystemArtifactStore

import lrsearch
from lrsearch.compress import artifact
from lrsearch.errors import StudyError
from lrsearch.profile import build as profiles
from lrsearch.spec.blobs import LocalStore
from lrsearch.study import artifacts, opening
from lrsearch.study.artifacts import SharedBlobs
from lrsearch.study.evaluator import Evaluator


@pytest.fixture
def pair(tmp_path):
    """The blobs of two machines."""
    return [SharedBlobs(LocalStore(tmp_path / name), str(tmp_path / "shared"), "a study") for name in "ab"]


def test_a_blob_is_found_by_others_until_it_is_removed(pair, tmp_path):
    a, b = pair
    a.put("paused/0003.pt", b"one")
    assert (b.get("paused/0003.pt"), b.exists("paused/0003.pt"), b.list("paused/")) == (b"one", True, ["paused/0003.pt"])
    assert b.local("paused/0003.pt") == tmp_path / "b" / "paused" / "0003.pt"
    a.put("paused/0003.pt", b"two")
    assert b.local("paused/0003.pt").read_bytes() == b.get("paused/0003.pt") == b"two"
    assert len([*(tmp_path / "shared").iterdir()]) == 2
    assert SharedBlobs(LocalStore(tmp_path / "c"), str(tmp_path / "shared"), "other").list("paused/") == []
    b.remove("paused/0003.pt")
    assert (a.get("paused/0003.pt"), a.list("paused/"), [*(tmp_path / "shared").iterdir()]) == (None, [], [])
    a.remove("paused/0003.pt")


@pytest.mark.parametrize("which", [0, 1])
def test_a_damaged_blob_counts_as_not_there(pair, tmp_path, which):
    a, b = pair
    a.put("losses/0001-0.f16", b"whole")
    path = sorted((tmp_path / "shared").iterdir())[which]
    path.write_bytes(path.read_bytes()[:-1])
    assert (b.get("losses/0001-0.f16"), b.local("losses/0001-0.f16")) == (None, None)
    a.put("losses/0001-0.f16", b"whole")
    assert b.get("losses/0001-0.f16") == b"whole"


def test_a_store_that_is_away_for_a_while_is_waited_for(pair, monkeypatch, caplog, capfd):
    waits = []
    monkeypatch.setattr(artifacts, "time", SimpleNamespace(sleep=waits.append))
    write, left = FileSystemArtifactStore.write, [3]

    def away(self, key, content):
        left[0] -= 1
        if left[0] > 0:
            content.read()  # some of it was sent
            raise OSError("away")
        write(self, key, content)

    monkeypatch.setattr(FileSystemArtifactStore, "write", away)
    pair[0].put("losses/0001-0.f16", b"whole")
    assert pair[1].get("losses/0001-0.f16") == b"whole"
    assert len(waits) == 2
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.endswith("is away, and is tried again for 51 s: away")
    left[0] = 1000
    waits.clear()
    with pytest.raises(OSError, match="cannot be put into the artifact store: away"):
        pair[0].put("losses/0001-0.f16", b"other")
    assert 50 < sum(waits) < 60
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_name_in_the_store_leads_to_no_file_outside_of_the_study(pair, tmp_path):
    store = FileSystemArtifactStore(tmp_path / "shared")
    for name in ("models--0001--..--..--mine.txt", "paused--0001.pt--..--..--..--mine.txt", "models--..--mine.txt"):
        store.write(f"a_study.{name}.sha256", io.BytesIO(b"0" * 64))
    assert [*pair[0].list("models/"), *pair[0].list("paused/")] == []


@pytest.mark.parametrize("place", ["gs://x", "s3://", "s3:///a"])
def test_other_places_are_refused(place, tmp_path):
    with pytest.raises(StudyError, match="must be a folder, or s3://BUCKET/PREFIX"):
        SharedBlobs(LocalStore(tmp_path), place, "study")


def test_what_never_changes_is_read_where_it_lies(tmp_path):
    a, b = (SharedBlobs(LocalStore(tmp_path / name), str(tmp_path / "shared"), "profile-1", constant=True) for name in "ab")
    a.put("000.safetensors", b"fits")
    assert (tmp_path / "a" / "000.safetensors").read_bytes() == b"fits"
    assert b.local("000.safetensors").read_bytes() == b"fits"
    shutil.rmtree(tmp_path / "shared")
    assert a.local("000.safetensors") == tmp_path / "a" / "000.safetensors"
    (tmp_path / "b" / "000.safetensors").write_bytes(b"fit")
    assert b.local("000.safetensors") is None  # damaged here, and gone there


@pytest.fixture
def swept(monkeypatch):
    """The names of the layers that were fitted, on whichever machine."""
    made, sweep = [], profiles.sweep
    monkeypatch.setattr(profiles, "sweep", lambda weight, layer, *rest: made.append(layer.name) or sweep(weight, layer, *rest))
    return made


@pytest.fixture
def on_machine(monkeypatch, tmp_path):
    """Runs a search on a machine of this name: a thread with a cache of its own."""
    own = threading.local()
    monkeypatch.setattr(opening, "cache_folder", lambda: own.cache)

    def run(name, job):
        own.cache = tmp_path / f"cache of {name}"
        own.cache.mkdir(exist_ok=True)
        return lrsearch.search(**{**job, "out": tmp_path / name})

    return run


def test_another_machine_has_the_profile_from_the_store(job, on_machine, swept, tmp_path):
    job = {**searching(job, trials=1, control_points=1), "artifacts": str(tmp_path / "shared")}
    first = on_machine("a", job)
    made = len(swept)
    assert made == len(set(swept)) > 0
    assert on_machine("b", job).trials.equals(first.trials)
    assert len(swept) == made
    for path in (tmp_path / "shared").glob("profile-*.sha256"):
        path.unlink()
    on_machine("b", job)
    assert on_machine("c", job).trials.equals(first.trials)  # b, which had it, gave it to the store again
    assert len(swept) == made


def test_a_damaged_layer_in_the_store_is_fitted_anew(job, on_machine, swept, tmp_path):
    job = {**searching(job, trials=1, control_points=1), "artifacts": str(tmp_path / "shared")}
    first = on_machine("a", job)
    made = len(swept)
    content = next(path for path in (tmp_path / "shared").glob("profile-*") if path.suffix != ".sha256")
    content.write_bytes(content.read_bytes()[:-1])
    assert on_machine("b", job).trials.equals(first.trials)
    assert len(swept) == made + 1


@pytest.mark.machines
def test_machines_that_begin_at_once_make_one_profile(shared, on_machine, swept, tmp_path):
    job = {**searching(shared, trials=2, control_points=1), "artifacts": str(tmp_path / "shared")}
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda name: on_machine(name, job), "abc"))
    assert len(set(swept)) == len(swept) > 0
    assert all(other.trials.equals(found[0].trials) for other in found)


@pytest.mark.parametrize("kind", ["journal", pytest.param("database", marks=pytest.mark.machines)])
def test_machines_make_parts_of_a_profile_side_by_side(request, job, kind, on_machine, swept, monkeypatch, tmp_path):
    """Of two that begin, each makes one before the other goes on."""
    where = {**job, "storage": f"journal:///{tmp_path / 'log'}", "name": "mine"} if kind == "journal" else request.getfixturevalue("shared")
    job = {**searching(where, trials=2, control_points=1), "artifacts": str(tmp_path / "shared")}
    meeting, begun, make = threading.Barrier(2), [], profiles._make

    def met(model, layers, *rest):
        if layers:
            begun.append(threading.get_ident())
            if len(begun) <= 2:
                meeting.wait(timeout=60)
        return make(model, layers, *rest)

    monkeypatch.setattr(profiles, "PART", 0.0)
    monkeypatch.setattr(profiles, "_make", met)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda name: on_machine(name, job), "ab"))
    assert len(set(begun)) == 2
    assert len(set(swept)) == len(swept) > 2
    assert all(other.trials.equals(found[0].trials) for other in found)


@pytest.mark.machines
def test_another_machine_goes_on_with_finetunes_and_has_the_whole_front(shared, calls, tmp_path, monkeypatch):
    monkeypatch.setattr("lrsearch.study.loop.TIDY", 0.0)  # so that the finetunes that are there at the interruption are under way
    job = {**shared, **FINETUNED, "artifacts": str(tmp_path / "shared")}
    calls.fail = lambda count: interrupt() if count == 9 else None
    with pytest.raises(KeyboardInterrupt):
        lrsearch.search(**{**job, "out": tmp_path / "a"})
    going = sorted(tmp_path.glob("shared/*paused*.sha256"))
    calls.fail, resumed, training = lambda count: None, [], Evaluator.training
    monkeypatch.setattr(Evaluator, "training", lambda self, fits, state: resumed.append(state is not None) or training(self, fits, state))
    shutil.move(tmp_path / "a", tmp_path / "gone")
    found = lrsearch.search(**{**job, "out": tmp_path / "b"})
    assert going
    assert sum(resumed) >= len(going)
    assert all(artifact.whole(tmp_path / "b" / model) for model in found.front.model)
    made = len(calls)
    third = lrsearch.search(**{**job, "out": tmp_path / "c"})
    assert len(calls) == made
    assert third.front.equals(found.front)
    assert all(artifact.whole(tmp_path / "c" / model) for model in third.front.model)
    assert not [*tmp_path.glob("shared/*paused*")]
