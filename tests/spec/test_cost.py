import pytest

from lrsearch.errors import ConfigError
from lrsearch.spec.cost import METRICS, Budget, Cost, CostModel, layer_cost
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.plan import LayerPlan, Plan

LINEAR = LayerSpec("fc", "linear", (6, 10), 1, 5)
GROUPED = LayerSpec("conv", "conv2d", (4, 2, 3, 3), 2, 7)


@pytest.mark.parametrize(
    ("layer", "plan", "itemsize", "expected"),
    [
        (LINEAR, LayerPlan(), 4, (60, 300, 300, 240)),
        (LINEAR, LayerPlan(density=0.25), 4, (15, 300, 75, 15 * 4 + 8)),  # 60 bits are 8 bytes
        (LINEAR, LayerPlan("svd", (2,), 0.0), 4, (32, 160, 160, 128)),
        (LINEAR, LayerPlan("svd", (2,), 0.1), 4, (38, 460, 190, 38 * 4 + 8)),
        (LINEAR, LayerPlan("svd", (2,), 0.1), 2, (38, 460, 190, 38 * 2 + 8)),
        (LINEAR, LayerPlan(density=0.0), 4, (0, 0, 0, 0)),
        (GROUPED, LayerPlan(), 4, (72, 504, 504, 288)),
        (GROUPED, LayerPlan(density=0.5), 4, (36, 504, 252, 36 * 4 + 9)),
    ],
)
def test_layer_cost_by_hand(layer, plan, itemsize, expected):
    assert layer_cost(layer, plan, itemsize) == Cost(*expected)


def test_cost_model_adds_the_fixed_part_once():
    model = CostModel(Cost(7, 11, 13, 17), (LINEAR, GROUPED))
    assert model.dense == Cost(7 + 132, 11 + 804, 13 + 804, 17 + 528)
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


def test_metrics_are_the_fields_of_cost():
    assert METRICS == ("params", "macs", "nonzero_macs", "weight_bytes")
