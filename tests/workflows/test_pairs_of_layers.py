"""A study of a network with blocks, from the search to the certificate: what is left out is in every figure."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

import lrsearch
from lrsearch.compress.inventory import inventory
from lrsearch.compress.modules import CompressedLayer
from lrsearch.spec.auto_space import STEP, auto_space
from lrsearch.spec.space import Range, Rule, Space
from lrsearch.study import latency as latencies
from lrsearch.study.offered import NOTHING, offered

SPACE = Space(rules=(
    Rule(
        families=("sparse", "low-rank"), patterns=("column",), density=Range(min=0.2, max=0.8, steps=4),
        rank_ratio=Range(min=0.2, max=0.5, steps=2),
    ),
))  # fmt: skip


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(12, 24, 3, padding=1), nn.Conv2d(24, 12, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(24), nn.BatchNorm2d(12)

    def forward(self, x):
        return (x + self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))).relu()


@pytest.fixture
def blocks():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1), Block(), Block(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4)).eval()


@pytest.fixture
def job(blocks, tiny_data, tmp_path):
    x, y = tiny_data
    return {
        "model": blocks, "calibration": (x[:50], y[:50]), "score": (x[50:110], y[50:110]), "train": (x[110:], y[110:]), "space": SPACE,
        "out": tmp_path / "run", "search": {"trials": 3, "control_points": 2}, "deploy": {"measure": False},
    }


def test_a_block_may_be_skipped_and_both_of_its_layers_keep_their_choices(blocks, tiny_data):
    found, menus = offered(blocks, inventory(blocks, tiny_data[0][:2]), SPACE, {"macs"}, tiny_data[0][:2])
    assert {layer.name: layer.read_by for layer in found.layers if layer.read_by} == {"1.conv1": "1.conv2", "2.conv1": "2.conv2"}
    assert [name for name, menu in menus.items() if NOTHING in menu] == ["1.conv2", "2.conv2"]
    assert {choice.format for choice in menus["1.conv1"]} == {"dense", "svd"}
    only_low_rank = SPACE.model_copy(update={"rules": (SPACE.rules[0].model_copy(update={"families": ("low-rank",)}),)})
    found, menus = offered(blocks, inventory(blocks, tiny_data[0][:2]), only_low_rank, {"macs"}, tiny_data[0][:2])
    assert not any(layer.read_by for layer in found.layers)
    assert not any(NOTHING in menu for menu in menus.values())


def test_what_all_of_the_input_goes_through_is_not_skipped(blocks, tiny_data):
    """Its outputs would be the same for every input: latency tables took such models for the fastest."""
    x = tiny_data[0][:2]
    stem = nn.Sequential(nn.Conv2d(12, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 12, 3, padding=1))
    whole = nn.Sequential(blocks[0], stem, *blocks[1:])
    found, menus = offered(whole, inventory(whole, x), SPACE, {"macs"}, x)
    assert {layer.read_by for layer in found.layers} >= {"1.2", "2.conv2"}
    assert [name for name, menu in menus.items() if NOTHING in menu] == ["2.conv2", "3.conv2"]
    _, menus = offered(whole, inventory(whole, x), SPACE, {"macs"}, x[:1])
    assert not any(NOTHING in menu for menu in menus.values())  # one example says nothing of it


def test_a_block_without_which_the_model_fails_is_not_skipped(blocks, tiny_data):
    def refuse(_module, args):
        if not args[0].any():
            raise ValueError("zeros are none of the values that this takes")

    blocks[1].norm2.register_forward_pre_hook(refuse)
    _, menus = offered(blocks, inventory(blocks, tiny_data[0][:2]), SPACE, {"macs"}, tiny_data[0][:2])
    assert [name for name, menu in menus.items() if NOTHING in menu] == ["2.conv2"]


@pytest.mark.parametrize("weights", ["float32", pytest.param("int8", marks=pytest.mark.slow)])
@pytest.mark.parametrize("budget", [
    {"macs": 0.3, "params": 0.4},
    *(pytest.param(budget, marks=pytest.mark.slow) for budget in ({"macs": 0.45}, {"weight_bytes": 0.5})),
], ids=str)
def test_what_a_certificate_counts_is_what_the_study_said(job, blocks, budget, weights):
    finetune = {"finetune": {"steps": 2, "batch": 16, "learning_rate": 0.001}}
    result = lrsearch.search(**job, budget=lrsearch.Budget(**budget), weights={"values": weights}, proxy=finetune)
    narrow = 0
    for row in range(len(result.front)):
        small = result.load(row)
        narrow += sum(m.outputs is not None for m in small.modules() if isinstance(m, CompressedLayer))
    assert narrow
    for row in range(len(result.front)):
        certificate = lrsearch.verify(job["out"] / result.front.model[row], model=blocks, score=job["score"])
        counted = {check.name: check for check in certificate.checks}
        assert {"params", "macs", "nonzero_macs", "weight_bytes", "divergence"} <= counted.keys()
        assert not [check for check in certificate.checks if not check.passed]
    assert lrsearch.open(job["out"]).front.drop(columns="model").equals(result.front.drop(columns="model"))
    answer = lrsearch.ask(job["out"], lrsearch.Budget(**{key: 0.9 * limit for key, limit in budget.items()}))
    assert answer.untried is None or all(getattr(answer.untried.cost, k) <= 0.9 * v * getattr(result.dense, k) for k, v in budget.items())


def test_a_polished_and_a_recovered_model_leave_out_as_much(job, blocks):
    result = lrsearch.search(**job, budget=lrsearch.Budget(macs=0.4))
    row = next(i for i in range(len(result.front)) if any(
        isinstance(m, CompressedLayer) and m.outputs is not None for m in result.load(i).modules()
    ))
    before = json.loads((job["out"] / result.front.model[row] / "plan.json").read_text())["storage"]
    sets = {name: job[name] for name in ("calibration", "score", "train")}
    recovered = lrsearch.recover(job["out"], model=blocks, **sets, index=row, epochs=1, batch=16, learning_rate=0.001)
    after = json.loads((recovered.folder / "plan.json").read_text())["storage"]
    assert (after["bytes"], after["read_by"]) == (before["bytes"], before["read_by"])
    polished = lrsearch.polish(job["out"] / result.front.model[row], model=blocks, calibration=job["calibration"])
    if polished.folder:
        after = json.loads((polished.folder / "plan.json").read_text())["storage"]
        assert (after["bytes"], after["read_by"]) == (before["bytes"], before["read_by"])


def test_channels_come_in_lanes_where_latency_counts(blocks, tiny_data):
    layers = inventory(blocks, tiny_data[0][:2]).layers
    menus = auto_space({"latency_ms"}).menus(layers)
    for layer in layers:
        for choice in menus[layer.name]:
            channels = layer.channels if choice.pattern == "column" else layer.rows
            if choice.pattern in ("column", "row"):
                assert round(choice.density * channels) % STEP == 0
                assert 0 < choice.kept(layer) < layer.numel
    assert any(choice.pattern == "column" for choice in menus["1.conv2"])


def test_what_is_no_faster_than_dense_is_not_fitted_where_latency_alone_counts(job, monkeypatch):
    def measured(survey, menus, *_):
        ms = {j.key: 1.0 if j.key == "dense" else 2.0 for j in survey.jobs}
        ms |= {j.key: 0.2 for j in survey.jobs if j.key.endswith(", fed")}
        times = {job: latencies.Timing(ms[job.key], 1, 1, 1, 1) for job in survey.jobs}
        dense = latencies.Timing(10.0, 1, 1, 1, 1)
        return replace(survey.table(survey.conditions("torch", 1), [dense, *times.values()]), dense=dense)

    monkeypatch.setattr(latencies, "measured", measured)
    monkeypatch.setattr(latencies.Timed, "keep_distance", lambda *_: None)
    monkeypatch.setattr(latencies.Timed, "_time", lambda self, plans, *_: [{"ms": 1.0, "dense_ms": 10.0, "verified": True} for _ in plans])
    result = lrsearch.search(**job, budget=lrsearch.Budget(latency_ratio=0.9), latency={"backend": "torch"})
    space = json.loads((job["out"] / "space.json").read_text())
    menus = space.get("data", space)["menus"]
    assert {len(menu) for name, menu in menus.items() if not name.endswith("conv2")} == {1}
    assert len(menus["1.conv2"]) > 2
    assert (result.trials.latency_ms <= 9.0).all()
    costs = {row.trial: row.latency_ms for row in result.trials.itertuples()}
    assert min(costs.values()) >= 0
