import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lrsearch.compress import artifact
from lrsearch.compress.apply import compress
from lrsearch.compress.inventory import inventory
from lrsearch.compress.prepare import prepare
from lrsearch.errors import ArtifactError
from lrsearch.spec.plan import LayerPlan, Plan

PLAN = Plan({"stem": LayerPlan("svd", (3,), 0.2), "grouped": LayerPlan(density=0.3), "head": LayerPlan(density=0.05)})
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
    plan, about = artifact.read_plan(folder)
    assert (plan, {k: about[k] for k in ABOUT}) == (PLAN, ABOUT)
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


def flip_a_bit(folder):
    path = folder / artifact.WEIGHTS
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def resealed(edit):
    """Damage that the checksum does not show."""
    def damage(folder):
        tensors = load_file(folder / artifact.WEIGHTS)
        edit(tensors)
        save_file(tensors, folder / artifact.WEIGHTS)
        data = (folder / artifact.WEIGHTS).read_bytes()
        edit_plan(lambda d: d["storage"].update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest()))(folder)

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
    "a plan too deep": lambda f: (f / artifact.PLAN).write_text("[" * 10**5),
    "no weights": lambda f: (f / artifact.WEIGHTS).unlink(),
    "weights cut": cut_weights,
    "weights empty": lambda f: (f / artifact.WEIGHTS).write_bytes(b""),
    "weights of another kind": lambda f: (f / artifact.WEIGHTS).write_bytes(b"PK\x03\x04" * 50),
    "a bit flipped": flip_a_bit,
    "tensor missing": resealed(lambda t: t.pop("stem")),
    "rest missing": resealed(lambda t: t.pop(".rest")),
    "tensor added": resealed(lambda t: t.update(extra=torch.zeros(1, dtype=torch.uint8))),
    "layer cut": resealed(lambda t: t.update(stem=t["stem"][:-1])),
    "rest cut": resealed(lambda t: t.update({".rest": t[".rest"][:-4]})),
    "mask with too many bits": resealed(lambda t: t["grouped"][:72].fill_(255)),
    "mask with too few bits": resealed(lambda t: t["grouped"][:72].fill_(0)),
    "indices out of range": resealed(lambda t: t["head"].fill_(255)),
    "indices too few": resealed(lambda t: t["head"].fill_(0)),
    "no plan": lambda f: (f / artifact.PLAN).unlink(),
    "plan cut": lambda f: (f / artifact.PLAN).write_text((f / artifact.PLAN).read_text()[:40]),
    "plan not text": lambda f: (f / artifact.PLAN).write_bytes(b"\xff\xfe\x00"),
    "plan a list": lambda f: (f / artifact.PLAN).write_text("[1]"),
    "plan without layers": edit_plan(lambda d: d.pop("plan")),
    "plan with a wrong entry": edit_plan(lambda d: d["plan"].update(head={"format": "svd"})),
    "plan of another rank": edit_plan(lambda d: d["plan"]["stem"].update(rank=[1])),
    "plan with a rank too many": edit_plan(lambda d: d["plan"]["stem"].update(rank=[2, 2])),
    "plan of a format the layer cannot have": edit_plan(lambda d: d["plan"]["head"].update(format="spatial-svd")),
    "plan of a pattern the layer cannot have": edit_plan(lambda d: d["plan"]["grouped"].update(pattern="row")),
    "plan of an unknown format": edit_plan(lambda d: d["plan"]["head"].update(format="hosvd")),
    "plan of an unknown pattern": edit_plan(lambda d: d["plan"]["grouped"].update(pattern="checkered")),
    "plan of another density": edit_plan(lambda d: d["plan"]["grouped"].update(density=0.9)),
    "plan for a layer of no kind": edit_plan(lambda d: d["plan"].update(norm={"format": "dense", "rank": [], "density": 0.5})),
    "another version": edit_plan(lambda d: d["storage"].update(version=99)),
    "an older version": edit_plan(lambda d: d.pop("storage")),
    "a version alone": edit_plan(lambda d: d.update(storage={"version": artifact.VERSION})),
    "storage that is no mapping": edit_plan(lambda d: d.update(storage=3)),
    "values of an unknown type": edit_plan(lambda d: d["storage"].update(values="int3")),
    "values of another type": edit_plan(lambda d: d["storage"].update(values="float16")),
    "plan for a stranger": edit_plan(lambda d: d["plan"].update({"no.such": {"format": "dense", "rank": [], "density": 0.5}})),
    "split of a stranger": edit_plan(lambda d: d.update(split=["no.such"])),
    "split of a convolution": edit_plan(lambda d: d.update(split=["stem"])),
    "split that is no list": edit_plan(lambda d: d.update(split=3)),
    "a file": to_file,
}


SAID = {
    "weights cut": r"weights\.safetensors: the file must be whole; got \d+ of \d+ bytes",
    "a bit flipped": "every byte must be as it was saved",
    "an older version": "must be a model folder of version 2; got version 1",
}


@pytest.mark.parametrize("damage", SAID)
def test_what_happened_is_said(folder, tiny_model, damage):
    DAMAGE[damage](folder)
    with pytest.raises(ArtifactError, match=SAID[damage]):
        artifact.load(folder, tiny_model)


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_folders_are_refused(folder, tiny_model, damage):
    damage(folder)
    with pytest.raises(ArtifactError):
        artifact.load(folder, tiny_model)


def with_module(model, name, module):
    setattr(model, name, module)
    return model


OTHERS = {
    "other names": lambda _: nn.Sequential(nn.Linear(3, 2)),
    "other statistics": lambda tiny: with_module(tiny, "norm", nn.BatchNorm2d(16, affine=False)),
    "other groups": lambda tiny: with_module(tiny, "grouped", nn.Conv2d(8, 16, 3, padding=1, groups=2)),
    "other shapes": lambda _: nn.ModuleDict({"stem": nn.Conv2d(3, 8, 3), "grouped": nn.Linear(2, 2), "head": nn.Linear(24, 4)}),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_another_base_model_is_refused(folder, tiny_model, other):
    with pytest.raises(ArtifactError):
        artifact.load(folder, other(tiny_model))


@pytest.mark.parametrize("step", ["weights", "replace", "about"])
def test_a_failing_save_leaves_the_old_folder_whole(folder, small, monkeypatch, step):
    before, about = contents(folder), {}

    def fail(*_):
        raise OSError("disk full")

    if step == "weights":
        monkeypatch.setattr(Path, "write_bytes", fail)
    elif step == "replace":
        monkeypatch.setattr(os, "replace", fail)
    else:
        about = {"not json": object()}
    with pytest.raises((OSError, TypeError)):
        artifact.save(small, PLAN, folder, about)
    monkeypatch.undo()
    assert contents(folder) == before
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


def test_merged_it_is_the_dense_model_with_other_values(folder, small, tiny_model, tiny_data):
    merged = artifact.load_merged(folder, tiny_model)
    torch.testing.assert_close(merged(tiny_data[0]), small(tiny_data[0]), rtol=1e-4, atol=1e-5)
    assert [type(m) for m in merged.modules()] == [type(m) for m in tiny_model.modules()]
    tiny_model.load_state_dict(merged.state_dict())
    assert torch.equal(tiny_model(tiny_data[0]), merged(tiny_data[0]))


def test_a_weight_that_is_computed_cannot_be_merged(tmp_path):
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 4))
    plain = prepare(model)
    plan = Plan({"0": LayerPlan(density=0.5)})
    artifact.save(compress(plain, inventory(plain, torch.randn(2, 8)).layers, plan), plan, tmp_path / "model", ABOUT)
    with pytest.raises(ArtifactError, match="only plain layers can hold L \\+ S as one weight; got 0: ParametrizedLinear"):
        artifact.load_merged(tmp_path / "model", model)
