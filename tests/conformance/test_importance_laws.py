"""Where the outputs of a layer matter unequally, fits are better for what matters, in every format and pattern."""

from functools import cache
from statistics import geometric_mean

import pytest
import torch

from lrsearch.compress.fit import FitProblem
from lrsearch.compress.formats.base import low_rank
from lrsearch.spec.plan import LayerPlan
from tests.conformance.catalogue import each_group, each_shape, problem_of, spec_of

SHARE, ENERGY = 1.01, 0.003


@cache
def uneven(name):
    """The layer's problem, some of its outputs mattering a thousand times as much as others."""
    even = problem_of(name)
    shape = even.weight.shape[:2]
    importance = torch.logspace(-1.5, 1.5, shape.numel())[torch.randperm(shape.numel(), generator=torch.Generator().manual_seed(0))]
    return FitProblem(even.layer, even.weight, even.gram, importance=(importance / importance.mean()).view(*shape, 1))


@each_group
def test_what_matters_is_fitted_better(cases):
    """Single supports may come out either way, so it is the geometric mean over the patterns that counts."""
    problem, ratios = uneven(cases[0].layer), []
    whole = problem.error(torch.zeros_like(problem.weight))
    for case in cases:
        ours, even = problem.fit(case.plan), problem.even.fit(case.plan)
        assert int(ours.mask.sum()) == case.plan.kept(case.spec), case
        if case.plan.rank and not low_rank(case.plan.format).chained(case.spec):
            assert torch.equal(ours.effective(), even.effective()), case  # its rows cannot be scaled back
        ratios.append((problem.error(ours.effective()) + ENERGY * whole) / (problem.error(even.effective()) + ENERGY * whole))
    assert geometric_mean(ratios) <= SHARE


@each_shape
def test_equal_importance_changes_nothing(name):
    problem, plan = problem_of(name), LayerPlan(density=0.3)
    same = FitProblem(problem.layer, problem.weight, problem.gram, importance=torch.ones(*problem.weight.shape[:2], 1))
    assert torch.equal(same.fit(plan).effective(), same.even.fit(plan).effective())


@pytest.mark.parametrize("form", ["dense", "svd"])
def test_it_holds_from_a_neighbour_too(form):
    spec = spec_of("linear")
    rank = low_rank(form).rank(spec, 0.3) if form == "svd" else ()
    plan, start = LayerPlan(form, rank, 0.2), uneven("linear").fit(LayerPlan(form, rank, 0.4))
    warm, even = uneven("linear").fit(plan, start), uneven("linear").even.fit(plan)
    assert uneven("linear").error(warm.effective()) < uneven("linear").error(even.effective())
