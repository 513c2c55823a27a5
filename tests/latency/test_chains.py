"""Layers that drop columns are timed on what they read, and what feeds them on what is left of it."""

import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from lrsearch.compress.inventory import inventory
from lrsearch.deploy.channel_flow import fed_layers
from lrsearch.deploy.deployed import deployed
from lrsearch.latency import survey as surveys
from lrsearch.latency.runner import Timing
from lrsearch.latency.survey import Survey
from lrsearch.latency.table import Conditions, LatencyTable, fed_key
from lrsearch.spec.plan import LayerPlan, Plan

COLUMNS, RANK, NOTHING = LayerPlan(density=0.3, pattern="column"), LayerPlan("svd", (4,), 0.0), LayerPlan(density=0.0)


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


@pytest.fixture
def survey() -> Survey:
    torch.manual_seed(0)
    model, x = Residual().eval(), torch.randn(2, 3, 8, 8)
    return Survey.of(model, inventory(model, x).layers, MENUS | {"stem": [LayerPlan()], "depthwise": [LayerPlan()]}, x, 1)


MENUS = {"project": [LayerPlan(), COLUMNS, RANK, NOTHING], "expand": [LayerPlan(), RANK], "head": [LayerPlan(), COLUMNS]}
KEPT = 20  # channels that COLUMNS reads of 64: 19, topped to whole lanes


def timed(survey: Survey, ms: dict[str, float]) -> LatencyTable:
    """A table in which forms take ``ms``, others 1 ms."""
    entries: dict[str, dict[str, Timing]] = {}
    for job in survey.jobs:
        t = ms.get(f"{job.layer.name} {job.key}", 1.0)
        entries.setdefault(job.signature, {})[job.key] = Timing(t, t, t, t, 1)
    return LatencyTable(Conditions("torch", "1", 1, 1, "float32", "-"), survey.architecture, Timing(9, 9, 9, 9, 1), entries)


def weights(data: bytes) -> set[tuple[int, ...]]:
    return {numpy_helper.to_array(t).shape for t in onnx.load_from_string(data).graph.initializer}


def test_columns_are_timed_with_what_feeds_them(survey):
    assert list(survey.fed) == list(survey.chains) == ["project"]
    found = {(job.signature, job.key): job for job in survey.jobs}
    assert len(found) == len(survey.jobs)
    assert survey.chains["project"].count(", fed by ") == 3

    def shapes(signature: str, key: str) -> list[tuple[int, ...]]:
        module, x = found[signature, key].module()
        assert module(x).shape == (1, 8, 8, 8)
        return [tuple(m.weight.shape) for m in module.modules() if isinstance(m, nn.Conv2d)][1:-1]

    assert shapes(survey.chains["project"], str(LayerPlan())) == [(64, 8, 1, 1), (64, 1, 3, 3), (8, 64, 1, 1)]
    assert shapes(survey.chains["project"], fed_key(COLUMNS)) == [(KEPT, 8, 1, 1), (KEPT, 1, 3, 3), (8, KEPT, 1, 1)]
    assert shapes(survey.chains["project"], fed_key(NOTHING)) == []
    assert shapes(survey.calls["project"][0], str(RANK)) == [(4, 64, 1, 1), (8, 4, 1, 1)]
    assert (survey.calls["project"][0], str(COLUMNS)) not in found


def test_what_a_chain_saves_counts_where_columns_are_dropped_and_less_where_what_feeds_them_is_low_rank(survey):
    table = timed(survey, {f"project {fed_key(COLUMNS)}": 0.25, f"expand {RANK}": 0.6})
    spared = survey.spared(table, MENUS | {"stem": [LayerPlan()], "depthwise": [LayerPlan()]})
    part = 64 * 8 / (64 * 8 + 64 * 9 + 64 * 8)
    assert spared["expand"][LayerPlan(), COLUMNS] == 0
    assert spared["expand"][RANK, COLUMNS] == pytest.approx(-0.75 * part * (1 - 0.6 * 64 / (64 + 8)), abs=1e-5)
    assert survey.saved(table, Plan({"project": COLUMNS})) == 0.75
    assert survey.saved(table, Plan({"project": COLUMNS, "expand": RANK})) == pytest.approx(0.4 + 0.75 + spared["expand"][RANK, COLUMNS])
    assert survey.saved(table, Plan({"head": COLUMNS})) == 0


def test_columns_that_spare_what_feeds_them_are_not_merged(survey):
    plan = Plan({"project": COLUMNS, "head": COLUMNS, "expand": RANK})
    assert survey.merged(timed(survey, {}), plan) == ["expand", "head"]


def test_whole_models_are_exported_as_they_are_deployed_also_where_what_feeds_columns_is_low_rank(survey, monkeypatch):
    plan, x = Plan({"project": COLUMNS, "expand": RANK}), survey.sample
    planned = survey.planned(plan, [])
    assert [tuple(m.weight.shape[:2]) for m in (planned.expand[1], planned.depthwise, planned.project)] == [(KEPT, 4), (KEPT, 1), (8, KEPT)]
    monkeypatch.setattr(surveys, "onnx_model", lambda *_: pytest.fail("exported"))
    exchanged = survey.onnx(plan, [])
    assert {(4, 8, 1, 1), (KEPT, 4, 1, 1), (KEPT, 1, 3, 3), (8, KEPT, 1, 1)} <= weights(exchanged)
    assert onnxruntime.InferenceSession(exchanged).run(None, {"input": x.numpy()})[0].shape == (1, 5)


@torch.no_grad()
def test_whole_models_lack_what_feeds_dropped_columns_also_where_layers_are_exchanged(survey, monkeypatch):
    plan, x = Plan({"project": COLUMNS, "head": COLUMNS}), survey.sample
    planned = survey.planned(plan, [])
    assert planned.expand.out_channels == planned.depthwise.groups == planned.project.in_channels == KEPT
    monkeypatch.setattr(surveys, "onnx_model", lambda *_: pytest.fail("exported"))
    exchanged, merged = survey.onnx(plan, []), survey.onnx(plan, ["project", "head"])
    assert {(KEPT, 8, 1, 1), (KEPT, 1, 3, 3), (8, KEPT, 1, 1)} <= weights(exchanged)
    assert {(64, 8, 1, 1), (64, 1, 3, 3), (8, 64, 1, 1)} <= weights(merged)
    for data in (exchanged, merged):
        assert onnxruntime.InferenceSession(data).run(None, {"input": x.numpy()})[0].shape == (1, 5)


def test_a_layer_may_both_feed_and_be_fed_and_whole_models_then_lack_both():
    model, x = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 4)).eval(), torch.zeros(3, 8)
    menus = {name: [LayerPlan(), COLUMNS] for name in "024"}
    assert {name: feed.producer for name, feed in fed_layers(deployed(model, x), menus, x).items()} == {"2": "0", "4": "2"}
    assert not fed_layers(deployed(model, x), {name: [LayerPlan(), RANK] for name in "024"}, x)
    survey = Survey.of(model, inventory(model, x).layers, menus, x, 1)
    kept = {(12, 8), (KEPT, 12), (4, KEPT)}
    plan = Plan({"2": COLUMNS, "4": COLUMNS})
    assert kept <= {tuple(m.weight.shape) for m in survey.planned(plan, []).modules() if isinstance(m, nn.Linear)}
    found = weights(survey.onnx(plan, []))
    assert kept <= found | {shape[::-1] for shape in found}


@torch.no_grad()
def test_a_block_that_is_skipped_is_not_in_whole_models(survey, monkeypatch):
    monkeypatch.setattr(surveys, "onnx_model", lambda *_: pytest.fail("exported"))
    for plan in (Plan({"project": NOTHING}), Plan({"project": NOTHING, "expand": RANK})):
        data = survey.onnx(plan, [])
        assert weights(data) & {(64, 8, 1, 1), (64, 1, 3, 3), (8, 64, 1, 1), (4, 8, 1, 1)} == set()
        assert onnxruntime.InferenceSession(data).run(None, {"input": survey.sample.numpy()})[0].shape == (1, 5)
