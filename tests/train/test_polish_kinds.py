"""Every format, pattern and precision is polished, and layers called twice."""

import pytest
import torch
from torch import nn

from lrsearch.compress.inventory import inventory
from lrsearch.spec.plan import LayerPlan, Plan
from lrsearch.train.polish import polish

BATCHES = 4


@pytest.fixture
def x(tiny_data):
    return tiny_data[0][:120]


@pytest.mark.parametrize(
    "plan", [
        LayerPlan("spatial-svd", (4,), 0.1), LayerPlan("tucker2", (6, 3), 0.1), LayerPlan("cp", (8,), 0.0), LayerPlan("tt", (3, 6, 6), 0.0),
        LayerPlan(density=0.5, pattern="row"), LayerPlan("svd", (4,), 0.3, "block4x1"),
    ], ids=str,
)  # fmt: skip
def test_every_format_and_pattern_is_polished(network, layers, x, plan, error, built, unpolished):
    plan = Plan({"stem": plan, "head": LayerPlan("svd", (2,), 0.2)})
    found = polish(network, layers, plan, x.chunk(BATCHES))
    assert error(built(network, layers, plan, found), network, x) < 0.8 * error(unpolished(network, layers, plan, x), network, x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_precisions(network, layers, plan, x, dtype, error, built, unpolished):
    network, x = network.to(dtype), x.to(dtype)
    found = polish(network, layers, plan, x.chunk(BATCHES))
    assert error(built(network, layers, plan, found), network, x) < 0.8 * error(unpolished(network, layers, plan, x), network, x)
    assert {name: t.dtype for name, t in found.tensors.items()} == dict.fromkeys(found.tensors, dtype)


def test_a_layer_called_twice_is_fitted_once_and_used_twice(error, built, unpolished):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.mix(self.mix(x).relu()))

    model, x, plan = Twice().eval(), torch.randn(80, 8).relu(), Plan({"mix": LayerPlan("svd", (4,), 0.2), "head": LayerPlan(density=0.5)})
    layers = inventory(model, x[:2]).layers
    small = built(model, layers, plan, polish(model, layers, plan, x.chunk(BATCHES)))
    assert error(small, model, x) < 0.8 * error(unpolished(model, layers, plan, x), model, x)


class ByKeyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix, self.norm, self.head = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(input=self.norm(input=self.mix(input=x)).relu())


def polished_error(model, x, error, built, unpolished):
    """What a polish of the first and the last layer leaves, of what is left without."""
    layers = inventory(model, x[:2]).layers
    plan = Plan({layers[0].name: LayerPlan("svd", (4,), 0.2), layers[-1].name: LayerPlan(density=0.5)})
    small = built(model, layers, plan, polish(model, layers, plan, x.chunk(BATCHES)))
    return error(small, model, x) / error(unpolished(model, layers, plan, x), model, x)


def test_layers_and_norms_that_are_called_by_keyword(error, built, unpolished):
    assert polished_error(ByKeyword().eval(), torch.randn(80, 8).relu(), error, built, unpolished) < 0.8


@pytest.mark.parametrize("bias", [True, False])
def test_inputs_whose_mean_is_far_above_their_spread(bias, error, built, unpolished):
    """Years, pressures, prices: their squares in float32 know nothing of the spread."""
    model, x = nn.Sequential(nn.Linear(8, 8, bias), nn.ReLU(), nn.Linear(8, 3)).eval(), 3000 + torch.randn(80, 8)
    assert polished_error(model, x, error, built, unpolished) < 1.0
