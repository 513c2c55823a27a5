import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lrsearch.compress import artifact
from lrsearch.compress.apply import compress
from lrsearch.compress.inventory import inventory
from lrsearch.errors import ArtifactError
from lrsearch.spec.plan import LayerPlan, Plan

PLAN = Plan({"stem": LayerPlan("svd", (3,), 0.2), "grouped": LayerPlan(density=0.3), "head": LayerPlan("svd", (2,), 0.0)})
ABOUT = {"model": {"timm": None}, "score": 0.5}


@pytest.fixture
def small(tiny_model, tiny_data):
    """A compressed model with factors and masks that are not those it is built with."""
    model = compress(tiny_model, inventory(tiny_model, tiny_data[0][:2]).layers, PLAN)
    state = model.state_dict()
    for name, tensor in state.items():
        if name.rpartition(".")[2] in ("0", "1", "values"):
            tensor.normal_()
        if name.endswith("bitmask"):
            tensor.copy_(tensor.flip(0) if not tensor[-1] else tensor)
    model.load_state_dict(state)
    return model.eval()


@pytest.fixture
def folder(small, tmp_path):
    artifact.save(small, PLAN, tmp_path / "runs" / "model", ABOUT)
    return tmp_path / "runs" / "model"


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_round_trip(folder, small, tiny_model, tiny_data):
    before = {k: v.clone() for k, v in tiny_model.state_dict().items()}
    again = artifact.load(folder, tiny_model)
    assert torch.equal(again(tiny_data[0]), small(tiny_data[0]))
    assert not again.training
    assert artifact.read_plan(folder) == (PLAN, ABOUT)
    assert all(torch.equal(v, before[k]) for k, v in tiny_model.state_dict().items())
    assert sorted(contents(folder)) == ["plan.json", "weights.safetensors"]


def test_saving_again_replaces(folder, small, tiny_model, tiny_data):
    with torch.no_grad():
        small.head.bias.add_(1)
    artifact.save(small, PLAN, folder, {})
    assert torch.equal(artifact.load(folder, tiny_model)(tiny_data[0]), small(tiny_data[0]))
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


def cut_weights(folder):
    path = folder / artifact.WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def edit_tensors(edit):
    def damage(folder):
        tensors = load_file(folder / artifact.WEIGHTS)
        edit(tensors)
        save_file(tensors, folder / artifact.WEIGHTS)

    return damage


def edit_plan(edit):
    def damage(folder):
        data = json.loads((folder / artifact.PLAN).read_text())
        edit(data)
        (folder / artifact.PLAN).write_text(json.dumps(data))

    return damage


def to_file(folder):
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    folder.write_text("not a folder")


DAMAGE = {
    "no weights": lambda f: (f / artifact.WEIGHTS).unlink(),
    "weights cut": cut_weights,
    "weights empty": lambda f: (f / artifact.WEIGHTS).write_bytes(b""),
    "weights of another kind": lambda f: (f / artifact.WEIGHTS).write_bytes(b"PK\x03\x04" * 50),
    "tensor missing": edit_tensors(lambda t: t.pop("stem.values")),
    "tensor added": edit_tensors(lambda t: t.update(extra=torch.zeros(1))),
    "tensor of another shape": edit_tensors(lambda t: t.update({"stem.values": torch.zeros(3)})),
    "mask with too many bits": edit_tensors(lambda t: t["grouped.bitmask"].fill_(255)),
    "mask with too few bits": edit_tensors(lambda t: t["grouped.bitmask"].fill_(0)),
    "no plan": lambda f: (f / artifact.PLAN).unlink(),
    "plan cut": lambda f: (f / artifact.PLAN).write_text((f / artifact.PLAN).read_text()[:40]),
    "plan not text": lambda f: (f / artifact.PLAN).write_bytes(b"\xff\xfe\x00"),
    "plan a list": lambda f: (f / artifact.PLAN).write_text("[1]"),
    "plan without layers": edit_plan(lambda d: d.pop("plan")),
    "plan with a wrong entry": edit_plan(lambda d: d["plan"].update(head={"format": "svd"})),
    "plan of another rank": edit_plan(lambda d: d["plan"]["head"].update(rank=[1])),
    "plan with a rank too many": edit_plan(lambda d: d["plan"]["head"].update(rank=[2, 2])),
    "plan of a format the layer cannot have": edit_plan(lambda d: d["plan"]["head"].update(format="spatial-svd")),
    "plan of a pattern the layer cannot have": edit_plan(lambda d: d["plan"]["grouped"].update(pattern="row")),
    "plan of an unknown format": edit_plan(lambda d: d["plan"]["head"].update(format="hosvd")),
    "plan of an unknown pattern": edit_plan(lambda d: d["plan"]["grouped"].update(pattern="checkered")),
    "plan of another density": edit_plan(lambda d: d["plan"]["grouped"].update(density=0.9)),
    "plan for a layer of no kind": edit_plan(lambda d: d["plan"].update(norm={"format": "dense", "rank": [], "density": 0.5})),
    "plan for a stranger": edit_plan(lambda d: d["plan"].update({"no.such": {"format": "dense", "rank": [], "density": 0.5}})),
    "split of a stranger": edit_plan(lambda d: d.update(split=["no.such"])),
    "split of a convolution": edit_plan(lambda d: d.update(split=["stem"])),
    "split that is no list": edit_plan(lambda d: d.update(split=3)),
    "a file": to_file,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_folders_are_refused(folder, tiny_model, damage):
    damage(folder)
    with pytest.raises(ArtifactError):
        artifact.load(folder, tiny_model)


OTHERS = {
    "other names": lambda: nn.Sequential(nn.Linear(3, 2)),
    "other shapes": lambda: nn.ModuleDict({"stem": nn.Conv2d(3, 8, 3), "grouped": nn.Linear(2, 2), "head": nn.Linear(24, 4)}),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_another_base_model_is_refused(folder, other):
    with pytest.raises(ArtifactError):
        artifact.load(folder, other())


@pytest.mark.parametrize("step", ["save_model", "replace", "about"])
def test_a_failing_save_leaves_the_old_folder_whole(folder, small, monkeypatch, step):
    before, about = contents(folder), {}

    def fail(*_):
        raise OSError("disk full")

    if step == "save_model":
        monkeypatch.setattr(artifact, "save_model", fail)
    elif step == "replace":
        monkeypatch.setattr(os, "replace", fail)
    else:
        about = {"not json": object()}
    with pytest.raises((OSError, TypeError)):
        artifact.save(small, PLAN, folder, about)
    monkeypatch.undo()
    assert contents(folder) == before
    assert [p.name for p in folder.parent.iterdir()] == ["model"]
