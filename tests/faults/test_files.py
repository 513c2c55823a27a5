"""Files that vanish, are damaged, cannot be written, or come from two studies at once."""

import shutil
import subprocess

import pytest
from faulty_study import Study, ended, made

pytestmark = pytest.mark.faults
STUDY_KINDS = [
    "lrsearch-study.json", "study.json", "study.db", "space.json", "front.csv", "front.parquet", "report.html", "search.log", "turn.json",
    "losses/*", "seals/losses/*", "models/*/plan.json", "models/*/weights.safetensors",
]
CACHE_KINDS = ["profiles/*/*.safetensors", "profiles/*/seals/*"]
IDENTITY = ("study.db", "study.json", "lrsearch-study.json")  # what a study is of and its trials: what is lost there is told


def flip(path, rng):
    data = bytearray(path.read_bytes() or b"x")
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(data))


def truncate(path, rng):
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data))] if data else b"")


def empty(path, rng):
    path.write_bytes(b"")


def vanish(path, rng):
    path.unlink()


FAULTS = {f.__name__: f for f in (flip, truncate, empty, vanish)}


@pytest.fixture
def copy(finished, tmp_path) -> Study:
    """The finished study once more."""
    study, *_ = finished
    shutil.copytree(study.home, tmp_path / "home")
    shutil.copytree(study.cache, tmp_path / "cache")
    return Study(tmp_path / "home", tmp_path / "cache")


@pytest.mark.parametrize("kind", [*STUDY_KINDS, *CACHE_KINDS])
def test_a_damaged_file_is_made_again_or_told_in_one_line(copy, finished, rng, kind):
    """One fault of each kind of file, drawn by the seed; the front is as it was."""
    name = rng.choice(sorted(FAULTS))
    root = copy.cache if kind in CACHE_KINDS else copy.folder
    path = rng.choice(sorted(p for p in root.glob(kind) if p.is_file()))
    was, kept = path.read_bytes(), copy.finished()
    FAULTS[name](path, rng)
    print(name, path)
    if kind in CACHE_KINDS:
        shutil.rmtree(copy.folder)  # a study that needs the cache
        kept = set()
    code, said = copy.run()
    if code:
        assert kind in IDENTITY, said
        assert code == 2
        assert said.startswith("lrsearch: ")
        path.write_bytes(was)
    front = copy.whole_after(kept if kind != "study.db" or code else set())
    assert front.equals(finished[1])


def test_everything_but_the_trials_vanishes(copy, finished):
    kept = copy.finished()
    for path in copy.folder.iterdir():
        if path.name not in ("study.db", "study.json", "lrsearch-study.json"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert copy.whole_after(kept).equals(finished[1])


@pytest.mark.parametrize("round_", range(4))
def test_files_that_cannot_grow(study, finished, rng, round_):
    """As on a full disk: writing beyond a size fails."""
    most = rng.choice([512, 4096, 20_000, 60_000, 110_000])
    code, said = study.run(largest_file=most)
    print(most, code, said)
    assert code == 0 or (code == 2 and said.startswith("lrsearch: ")), said
    assert study.whole_after(study.finished()).equals(finished[1])


@pytest.fixture
def mounted():
    """Mounts what the test asks for, and takes it away; skips where that is not allowed."""
    made = []

    def mount(*arguments):
        try:
            done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True, check=False)
        except OSError as error:
            pytest.skip(f"mounting: {error}")
        if done.returncode:
            pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
        made.append(arguments[-1])

    yield mount
    for place in reversed(made):
        subprocess.run(["umount", "-l", str(place)], check=False)


@pytest.mark.parametrize("what", ["folder", "cache"])
def test_a_small_disk_is_full(study, finished, rng, mounted, what):
    place = study.home / "runs" if what == "folder" else study.cache
    place.mkdir()
    mounted("-t", "tmpfs", "-o", f"size={rng.randrange(8, 200)}k", "tmpfs", place)
    code, said = study.run()
    assert code == 0 or (code == 2 and said.startswith("lrsearch: ")), said
    mounted("-o", "remount,size=64m", place)
    assert study.whole_after(study.finished()).equals(finished[1])


@pytest.mark.parametrize("what", ["folder", "cache"])
def test_a_read_only_place_is_one_line(copy, finished, mounted, what):
    place, kept = copy.home / "runs" if what == "folder" else copy.cache, copy.finished()
    if what == "cache":
        shutil.rmtree(copy.cache)
        copy.cache.mkdir()
        shutil.rmtree(copy.folder)
        kept = set()
    mounted("--bind", place, place)
    mounted("-o", "remount,ro,bind", place)
    code, said = copy.run()
    assert code == 2, said
    assert said.startswith("lrsearch: ")
    subprocess.run(["umount", "-l", place], check=False)
    assert copy.whole_after(kept).equals(finished[1])


@pytest.mark.parametrize("what", ["folder", "cache"])
def test_a_file_in_the_place_of_a_folder_is_one_line(study, finished, what):
    """What nobody can write to, root neither."""
    place = study.home / "runs" if what == "folder" else study.cache
    place.write_text("in the way")
    code, said = study.run()
    assert code == 2, said
    assert said.startswith("lrsearch: ")
    assert str(place) in said or place.name in said
    assert place.read_text() == "in the way"
    place.unlink()
    assert study.whole_after(set()).equals(finished[1])


def test_two_studies_begin_with_a_cold_cache(tmp_path, finished):
    studies = [made(tmp_path / name, tmp_path / "cache") for name in "ab"]
    for process in [study.begin() for study in studies]:
        code, said = ended(process)
        assert code == 0, said
    assert all(study.whole_after(study.finished()).equals(finished[1]) for study in studies)
