import pytest
import torch

from lrsearch.study.finetune_checkpoints import FinetuneCheckpoints
from lrsearch.study.study_folder import StudyFolder

STATE = {
    "steps": 7, "flag": False, "none": {}, "tensors": {"a.weight/0": torch.arange(3.0), "mask": torch.tensor([True, False])},
    "deep": {"er": {"x": torch.zeros(0, 2, dtype=torch.int64)}, "list": [1, "two", None]},
}


@pytest.fixture
def paused(tmp_path):
    return FinetuneCheckpoints(StudyFolder(tmp_path))


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, torch.Tensor) else a == b


def test_a_state_comes_back_as_it_was(paused):
    paused.save(12, STATE)
    assert same(paused.load(12), STATE)
    assert not list((paused.folder.path / "paused").glob("*.writing*"))
    paused.save(12, {"steps": 8})
    assert paused.load(12) == {"steps": 8}


def test_a_state_that_is_not_there_or_cannot_be_read_is_none(paused):
    assert paused.load(3) is None
    paused.save(3, STATE)
    (paused.folder.path / "paused" / "0003.pt").write_bytes(b"not a state")
    assert paused.load(3) is None


def test_only_what_is_kept_stays(paused):
    paused.keep([1])
    for number in (1, 2, 3):
        paused.save(number, STATE)
    (paused.folder.path / "paused" / "0004.writing").write_bytes(b"half")
    paused.keep([1, 3, 9])
    assert {p.name for p in (paused.folder.path / "paused").iterdir()} == {"0001.pt", "0003.pt"}
