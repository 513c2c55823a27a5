"""Layers that drop columns are timed with what feeds them, and what feeds them has no choices of its own."""

import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from lrsearch.compress.inventory import inventory
from lrsearch.deploy.deployed import deployed
from lrsearch.latency import survey as surveys
from lrsearch.latency.chains import FedJob, fed_layers
from lrsearch.latency.runner import Timing
from lrsearch.latency.survey import Survey
from lrsearch.latency.table import Conditions, LatencyTable
from lrsearch.spec.plan import LayerPlan, Plan

COLUMNS, RANK = LayerPlan(density=0.3, pattern="column"), LayerPlan("svd", (4,), 0.0)


class Residual(nn.Module):
    """(n, 3, 8, 8) → (n, 5): stem, an inverted residual, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.expand, self.norm, self.act = nn.Conv2d(8, 64, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU6(inplace=True)
        self.depthwise, self.project = nn.Conv2d(64, 64, 3, padding=1, groups=64), nn.Conv2d(64, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        return self.head((x + self.project(self.depthwise(self.act(self.norm(self.expand(x)))))).mean((2, 3)))


def survey(joined: bool) -> Survey:
    torch.manual_seed(0)
    model, x = Residual().eval(), torch.randn(2, 3, 8, 8)
    menus = {layer.name: [LayerPlan()] for layer in inventory(model, x).layers}
    menus |= {"project": [LayerPlan(), COLUMNS, RANK], "expand": [LayerPlan(), RANK], "head": [LayerPlan(), COLUMNS]}
    return Survey.of(model, inventory(model, x).layers, menus, x, 1, joined)


@pytest.fixture
def fed() -> Survey:
    return survey(joined=True)


@pytest.fixture
def apart() -> Survey:
    return survey(joined=False)


def weights(data: bytes) -> set[tuple[int, ...]]:
    return {numpy_helper.to_array(t).shape for t in onnx.load_from_string(data).graph.initializer}


def test_a_layer_is_timed_with_what_feeds_it_under_each_choice(fed):
    assert list(fed.fed) == ["project"]
    (called,) = fed.calls["project"]
    assert called.startswith("conv2d 8x64x1x1 on 1x64x8x8")
    assert called.count(", fed by ") == 3
    jobs = {job.choice: job for job in fed.jobs if job.signature == called}
    assert set(jobs) == {LayerPlan(), COLUMNS, RANK}
    assert all(isinstance(job, FedJob) for job in jobs.values())
    convolutions = {choice: [m for m in job.module()[0].modules() if isinstance(m, nn.Conv2d)] for choice, job in jobs.items()}
    shapes = {choice: [tuple(m.weight.shape) for m in own[1:-1]] for choice, own in convolutions.items()}
    assert shapes[LayerPlan()] == [(64, 8, 1, 1), (64, 1, 3, 3), (8, 64, 1, 1)]
    assert shapes[COLUMNS] == [(32, 8, 1, 1), (32, 1, 3, 3), (8, 32, 1, 1)]
    assert shapes[RANK] == [(64, 8, 1, 1), (64, 1, 3, 3), (4, 64, 1, 1), (8, 4, 1, 1)]
    for job in jobs.values():
        module, x = job.module()
        assert module(x).shape == (1, 8, 8, 8)


def test_what_feeds_a_layer_has_no_choices_of_its_own_and_none_are_timed(fed):
    menus = {"expand": [LayerPlan(), RANK], "project": [LayerPlan(), COLUMNS]}
    assert fed.led(menus) == {"expand": [LayerPlan()], "project": [LayerPlan(), COLUMNS]}
    assert {job.choice for job in fed.jobs if job.layer.name == "expand"} == {LayerPlan()}


def test_where_layers_are_timed_alone_all_have_choices_and_columns_are_not_merged(apart):
    menus = {"expand": [LayerPlan(), RANK], "project": [LayerPlan(), COLUMNS]}
    assert apart.led(menus) == menus
    assert not any(isinstance(job, FedJob) for job in apart.jobs)
    timed = {(job.signature, job.choice) for job in apart.jobs}
    assert timed >= {(apart.calls[name][0], choice) for name, menu in menus.items() for choice in menu}
    as_slow = {signature: {str(choice): Timing(1, 1, 1, 1, 1) for choice in (LayerPlan(), COLUMNS, RANK)} for signature, _ in timed}
    table = LatencyTable(Conditions("torch", "1", 1, 1, "float32", "-"), apart.architecture, Timing(9, 9, 9, 9, 1), as_slow)
    assert apart.merged(table, Plan({"project": COLUMNS, "head": COLUMNS, "expand": RANK})) == ["expand", "head"]


def test_where_layers_are_timed_alone_whole_models_are_exported_as_they_are_deployed(apart):
    plan = Plan({"project": COLUMNS, "expand": RANK})
    assert {(4, 8, 1, 1), (32, 4, 1, 1), (32, 1, 3, 3), (8, 32, 1, 1)} <= weights(apart.onnx(plan, []))


@torch.no_grad()
def test_whole_models_lack_what_feeds_dropped_columns_also_where_layers_are_exchanged(fed, monkeypatch):
    plan, x = Plan({"project": COLUMNS, "head": COLUMNS}), fed.sample
    planned = fed.planned(plan, [])
    assert planned.expand.out_channels == planned.depthwise.groups == planned.project.in_channels == 32
    monkeypatch.setattr(surveys, "onnx_model", lambda *_: pytest.fail("exported"))
    exchanged, merged = fed.onnx(plan, []), fed.onnx(plan, ["project", "head"])
    assert {(32, 8, 1, 1), (32, 1, 3, 3), (8, 32, 1, 1)} <= weights(exchanged)
    assert {(64, 8, 1, 1), (64, 1, 3, 3), (8, 64, 1, 1)} <= weights(merged)
    for data in (exchanged, merged):
        assert onnxruntime.InferenceSession(data).run(None, {"input": x.numpy()})[0].shape == (1, 5)


def test_no_layer_both_feeds_and_is_fed():
    model, x = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 4)).eval(), torch.zeros(3, 8)
    menus = {name: [LayerPlan(), COLUMNS] for name in "024"}
    assert {name: feed.producer for name, feed in fed_layers(deployed(model, x), menus, x).items()} == {"4": "2"}
    assert not fed_layers(deployed(model, x), {name: [LayerPlan(), RANK] for name in "024"}, x)
