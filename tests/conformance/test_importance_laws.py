"""Where the outputs of a layer matter unequally, every format and pattern fits the layer whose rows are scaled accordingly."""

from functools import cache
from statistics import geometric_mean

import pytest
import torch
from catalogue import FITTED, LAYERS, SHAPES, alternates, each_fitted, each_shape, of_layer, problem_of

from lrsearch.compress.fit import FitProblem
from lrsearch.compress.formats.base import low_rank
from lrsearch.spec.plan import LayerPlan

SHARE, ENERGY = 1.01, 0.003
QUICK = [
    pytest.param(cases, id=f"{name}, {form}", marks=() if name in FITTED else pytest.mark.slow)
    for name in LAYERS if name in SHAPES.values() for form in ("dense", "svd") if (cases := of_layer(name, form))
]  # fmt: skip


def with_importance(name, importance):
    """The layer's problem, its outputs mattering as much as the vector ``importance`` says."""
    even = problem_of(name)
    return FitProblem(even.layer, even.weight, even.gram, importance=importance.view(*even.weight.shape[:2], 1))


@cache
def uneven(name):
    """The layer's problem, some of its outputs mattering a thousand times as much as others."""
    rows = problem_of(name).weight.shape[:2].numel()
    importance = torch.logspace(-1.5, 1.5, rows)[torch.randperm(rows, generator=torch.Generator().manual_seed(0))]
    return with_importance(name, importance / importance.mean())


@pytest.mark.parametrize("cases", QUICK)
def test_what_matters_is_fitted_better(cases):
    """Single supports may come out either way, so it is the geometric mean over the patterns that counts."""
    layer, ratios = uneven(cases[0].layer), []
    whole = layer.error(torch.zeros_like(layer.weight))
    for case in cases:
        ours, even = layer.fit(case.plan), layer.even.fit(case.plan)
        assert int(ours.mask.sum()) == case.plan.kept(case.spec), case
        ratios.append((layer.error(ours.effective()) + ENERGY * whole) / (layer.error(even.effective()) + ENERGY * whole))
    assert geometric_mean(ratios) <= SHARE


@each_shape
def test_equal_importance_changes_nothing(name):
    layer, plan = problem_of(name), LayerPlan(density=0.3)
    same = with_importance(name, torch.ones(layer.weight.shape[:2]))
    assert torch.equal(same.fit(plan).effective(), same.even.fit(plan).effective())


@each_fitted(quick=lambda case: case.layer in ("linear", "conv n to 1") or not alternates(case.row))
def test_it_is_the_fit_of_scaled_rows_scaled_back(case):
    """Exactly, as the rows are scaled by powers of 2; where rows cannot be scaled back, outputs are all as important."""
    even = problem_of(case.layer)
    gain = torch.tensor([0.5, 1.0, 2.0, 4.0]).repeat(even.weight.shape[:2].numel())[: even.weight.shape[:2].numel()]
    uneven = with_importance(case.layer, gain.square())
    gain = gain.view(*even.weight.shape[:2], 1)
    if case.plan.rank and not low_rank(case.plan.format).chained(case.spec):
        gain = torch.ones_like(gain)
    scaled = FitProblem(even.layer, even.weight * gain, even.gram).fit(case.plan)
    assert torch.equal(uneven.fit(case.plan).effective() * gain, scaled.effective()), case
