import pytest
import torch

from lrsearch.errors import StudyError
from lrsearch.study.checkpoint import load_state, save_state


def test_what_is_saved_is_read_back(tmp_path):
    save_state(tmp_path / "a.pt", "me", {"steps": 3, "values": {"x": torch.ones(2)}})
    found = load_state(tmp_path / "a.pt", "me")
    assert found.keys() == {"steps", "values"}
    assert torch.equal(found["values"]["x"], torch.ones(2))
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_another_identity_is_refused(tmp_path):
    save_state(tmp_path / "a.pt", "me", {"steps": 3})
    with pytest.raises(StudyError, match=r"a\.pt: an unfinished training.*got you, begun as me.*remove a\.pt"):
        load_state(tmp_path / "a.pt", "you")


def test_a_damaged_file_is_refused(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"nothing")
    with pytest.raises(StudyError, match=r"a\.pt: must be a training's state"):
        load_state(tmp_path / "a.pt", "me")


@pytest.mark.parametrize("older", [{}, {"format": 1}])
def test_a_state_of_another_version_is_refused(tmp_path, older):
    torch.save({"identity": "me", "steps": 3, **older}, tmp_path / "a.pt")
    with pytest.raises(StudyError, match=r"a\.pt: .* with the version of lrsearch that began it; got format 1, not 2.*remove a\.pt"):
        load_state(tmp_path / "a.pt", "me")
