from dataclasses import replace

import pytest

from lrsearch.errors import ConfigError
from lrsearch.spec.cost import Budget, Cost, CostModel, layer_cost, measured
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.metrics import METRICS
from lrsearch.spec.plan import LayerPlan, Plan

LINEAR = LayerSpec("fc", "linear", (6, 10), 1, 5)
GROUPED = LayerSpec("conv", "conv2d", (4, 2, 3, 3), 2, 7)
STRIDED = LayerSpec("strided", "conv2d", (8, 6, 3, 3), 1, 20, 80, 40)
HALF = replace(LINEAR, itemsize=2)
WIDE = LayerSpec("wide", "linear", (8, 12), 1, 5)


@pytest.mark.parametrize(
    ("layer", "plan", "values", "expected"),
    [
        (LINEAR, LayerPlan(), "float32", (60, 300, 300, 240)),
        (LINEAR, LayerPlan(density=0.25), "float32", (15, 300, 75, 15 * 4 + 8)),  # 60 bits are 8 bytes
        (LINEAR, LayerPlan("svd", (2,), 0.0), "float32", (32, 160, 160, 128)),
        (LINEAR, LayerPlan("svd", (2,), 0.1), "float32", (38, 460, 190, 38 * 4 + 4)),  # Elias-Fano: 6 * 3 low bits, 6 + 59 // 8 high ones
        (LINEAR, LayerPlan("svd", (2,), 0.1), "float16", (38, 460, 190, 38 * 2 + 4)),
        (LINEAR, LayerPlan("svd", (2,), 0.1), "int8", (38, 460, 190, 38 + 4 + 2 * (2 + 6 + 6))),  # a scale of 2 bytes per row
        (LINEAR, LayerPlan(), "int8", (60, 300, 300, 60 + 2 * 6)),
        (HALF, LayerPlan(), "float32", (60, 300, 300, 120)),  # nothing is stored wider than it is
        (HALF, LayerPlan(), "float16", (60, 300, 300, 120)),
        (LINEAR, LayerPlan(density=0.0), "float32", (0, 0, 0, 0)),  # nothing of a layer of zeros runs but its bias
        (GROUPED, LayerPlan(), "float32", (72, 504, 504, 288)),
        (GROUPED, LayerPlan(density=0.5), "float32", (36, 504, 252, 36 * 4 + 9)),
        # A bitmask has one bit for each value, block, row or column; a dense runtime skips rows and columns alone.
        (LINEAR, LayerPlan(density=0.5, pattern="row"), "float32", (30, 150, 150, 30 * 4 + 1)),
        (LINEAR, LayerPlan(density=0.3, pattern="column"), "float32", (18, 90, 90, 18 * 4 + 2)),
        (LINEAR, LayerPlan(density=0.2, pattern="1:5"), "float32", (12, 300, 60, 12 * 4 + 5)),  # 3 bits for each of 12 groups
        (LINEAR, LayerPlan(density=0.3, pattern="block3x2"), "float32", (18, 300, 90, 18 * 4 + 2)),
        (LINEAR, LayerPlan("svd", (2,), 0.1, "block3x2"), "float32", (38, 460, 190, 38 * 4 + 1)),  # one block of ten
        # Stages run over 80 positions until the first stride, over 40 when the height alone is strided, then over 20.
        (STRIDED, LayerPlan("svd", (2,), 0.0), "float32", (108 + 16, *[20 * 124] * 2, 4 * 124)),
        (STRIDED, LayerPlan("spatial-svd", (2,), 0.0), "float32", (36 + 48, *[40 * 36 + 20 * 48] * 2, 4 * 84)),
        (STRIDED, LayerPlan("tucker2", (4, 3), 0.0), "float32", (18 + 108 + 32, *[80 * 18 + 20 * 140] * 2, 4 * 158)),
        (STRIDED, LayerPlan("cp", (5,), 0.0), "float32", (30 + 45 + 40, *[80 * 30 + 20 * 85] * 2, 4 * 115)),
        (STRIDED, LayerPlan("tt", (2, 3, 4), 0.0), "float32", (12 + 18 + 36 + 32, *[80 * 12 + 40 * 18 + 20 * 68] * 2, 4 * 98)),
        # 8 x 12 as (2 x 2) (2 x 2) (2 x 3); from the last core on: 4 * 18, 2 * 2 * 24 and 4 * 8 multiplications.
        (WIDE, LayerPlan("tt", (2, 3), 0.0), "float32", (8 + 24 + 18, *[5 * (72 + 96 + 32)] * 2, 4 * 50)),
    ],
)
def test_layer_cost_by_hand(layer, plan, values, expected):
    assert layer_cost(layer, plan, values) == Cost(*expected)


def test_cost_model_adds_the_fixed_part_once():
    model = CostModel(Cost(7, 11, 13, 17), (LINEAR, GROUPED), Cost())
    assert model(Plan()) == Cost(7 + 132, 11 + 804, 13 + 804, 17 + 528)
    assert model(Plan({"fc": LayerPlan("svd", (2,), 0.0)})) == Cost(7 + 104, 11 + 664, 13 + 664, 17 + 416)


@pytest.mark.parametrize("limit", [0, -0.5, 1.5, True, "0.3", float("nan"), float("inf"), [1]])
def test_budget_refuses_what_is_neither_ratio_nor_whole(limit):
    with pytest.raises(ConfigError, match=r"^budget\.macs: "):
        Budget(macs=limit)


def test_budget_resolves_ratios_down_and_keeps_absolute_limits():
    dense = Cost(params=101, macs=1000, nonzero_macs=1000, weight_bytes=404)
    limits = Budget(params=0.5, macs=800, weight_bytes=1).resolve(dense)
    assert limits == {"params": 50, "macs": 800, "weight_bytes": 404}
    assert all(type(v) is int for v in limits.values())


def test_budgets_of_bytes_may_have_units():
    assert Budget(weight_bytes="128 KiB") == Budget(weight_bytes=131072)
    with pytest.raises(ConfigError, match=r"^budget\.weight_bytes: must be a number and one of B, kB"):
        Budget(weight_bytes="128")


def test_metrics_are_the_fields_of_cost():
    assert tuple(METRICS) == ("params", "macs", "nonzero_macs", "weight_bytes", "latency_ms")


LATENCY = {"fc": {LayerPlan(): 0.5, LayerPlan("svd", (2,), 0.0): 0.25}, "conv": {LayerPlan(): 0.125}}


def test_latency_is_that_of_the_dense_model_and_what_its_layers_save():
    model = CostModel(Cost(), (LINEAR, GROUPED), Cost()).timed(2.0, LATENCY)
    assert model.dense.latency_ms == model(Plan()).latency_ms == 2.0
    assert model(Plan({"fc": LayerPlan("svd", (2,), 0.0)})).latency_ms == 1.75
    assert measured(model.dense) == list(METRICS)


def test_a_latency_that_was_not_measured_is_not_shown():
    dense = CostModel(Cost(), (LINEAR, GROUPED), Cost()).dense
    assert "latency_ms" not in dense.to_dict()
    assert "latency_ms" not in measured(dense)


def test_budgets_of_latency_are_milliseconds_or_a_ratio_of_its_own():
    dense = Cost(params=100, latency_ms=0.8)
    assert Budget(latency_ms=4.5, params=0.5).resolve(dense) == {"params": 50, "latency_ms": 4.5}
    assert Budget(latency_ms=0.7).resolve(dense) == {"latency_ms": 0.7}
    assert Budget(latency_ratio=0.5).resolve(dense) == {"latency_ms": 0.4}
    assert Budget(latency_ms=0.3, latency_ratio=0.5).resolve(dense) == {"latency_ms": 0.3}


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"latency_ms": 0}, r"budget\.latency_ms: .*milliseconds"), ({"latency_ms": float("inf")}, r"budget\.latency_ms"),
        ({"latency_ratio": 1.5}, r"budget\.latency_ratio: .*ratio.*milliseconds are latency_ms"), ({"latency_ms": "4"}, "latency_ms"),
    ],
)  # fmt: skip
def test_budgets_of_latency_refuse_what_is_neither(limits, message):
    with pytest.raises(ConfigError, match=message):
        Budget(**limits)
