"""Where the outputs of a layer matter unequally, fits are better for what matters, in every format and pattern."""

from functools import cache
from statistics import geometric_mean

import pytest
import torch
from catalogue import each_fitted, each_shape, problem_of

from lrsearch.compress.fit import FitProblem
from lrsearch.compress.formats.base import low_rank
from lrsearch.spec.plan import LayerPlan

SHARE, ENERGY = 1.01, 0.003


@cache
def uneven(name):
    """The layer's problem, some of its outputs mattering a thousand times as much as others."""
    even = problem_of(name)
    shape = even.weight.shape[:2]
    importance = torch.logspace(-1.5, 1.5, shape.numel())[torch.randperm(shape.numel(), generator=torch.Generator().manual_seed(0))]
    return FitProblem(even.layer, even.weight, even.gram, importance=(importance / importance.mean()).view(*shape, 1))


@each_fitted
def test_what_matters_is_fitted_better(cases):
    """Single supports may come out either way, so it is the geometric mean over the patterns that counts."""
    layer, ratios = uneven(cases[0].layer), []
    whole = layer.error(torch.zeros_like(layer.weight))
    for case in cases:
        ours, even = layer.fit(case.plan), layer.even.fit(case.plan)
        assert int(ours.mask.sum()) == case.plan.kept(case.spec), case
        if case.plan.rank and not low_rank(case.plan.format).chained(case.spec):
            assert torch.equal(ours.effective(), even.effective()), case  # its rows cannot be scaled back
        ratios.append((layer.error(ours.effective()) + ENERGY * whole) / (layer.error(even.effective()) + ENERGY * whole))
    assert geometric_mean(ratios) <= SHARE


@each_shape
def test_equal_importance_changes_nothing(name):
    layer, plan = problem_of(name), LayerPlan(density=0.3)
    same = FitProblem(layer.layer, layer.weight, layer.gram, importance=torch.ones(*layer.weight.shape[:2], 1))
    assert torch.equal(same.fit(plan).effective(), same.even.fit(plan).effective())


@pytest.mark.parametrize(("name", "form"), [("linear", "svd"), ("conv", "tucker2")])
@pytest.mark.parametrize("density", [0.0, 0.2])
def test_it_is_the_fit_of_scaled_rows_scaled_back(name, form, density):
    """Exactly, as the rows are scaled by powers of 2."""
    even = problem_of(name)
    gain = torch.tensor([0.5, 1.0, 2.0, 4.0]).repeat(even.weight.shape[1])[: even.weight.shape[1]].view(1, -1, 1)
    plan = LayerPlan(form, low_rank(form).rank(even.layer, 0.2), density)
    uneven = FitProblem(even.layer, even.weight, even.gram, importance=gain.square())
    scaled = FitProblem(even.layer, even.weight * gain, even.gram)
    torch.testing.assert_close(uneven.fit(plan).effective() * gain, scaled.fit(plan).effective(), rtol=0, atol=0)
