"""A fit that starts from a neighbouring one is nearly as good as one that starts from nothing.

Single supports may come out either way, so it is the geometric mean over the patterns that counts. The
layers are large enough for a start to be used.
"""

from functools import cache
from math import exp, log

import pytest
import torch

from lrsearch.compress.fit import SMALL, FitProblem
from lrsearch.compress.matricize import gram
from lrsearch.spec.formats import FORMATS
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.plan import LayerPlan

SHAPES = {"linear": (192, 160), "conv2d": (48, 36, 3, 3)}
GRID = [("linear", "svd"), ("linear", "tt"), *(("conv2d", form) for form in FORMATS)]
KINDS = ("unstructured", "block2x2")
WORSE = 1.15


@cache
def problem(kind):
    """A weight and correlated inputs."""
    generator = torch.Generator().manual_seed(0)
    spec = LayerSpec("0", kind, SHAPES[kind])
    mix = torch.randn(spec.columns, spec.columns, generator=generator) * torch.rand(spec.columns, generator=generator)
    x = (torch.randn(2 * spec.columns, spec.columns, generator=generator) @ mix).relu()[None]
    weight = torch.randn(1, spec.rows, spec.columns, generator=generator) * torch.rand(1, spec.rows, 1, generator=generator)
    assert spec.numel * spec.columns > SMALL
    return FitProblem(spec, weight, gram(x) / x.shape[1])


def mean_ratio(kind, plans_and_starts):
    """How many times the error of a cold fit a warm one has."""
    fit, error = problem(kind).fit, problem(kind).error
    warm_and_cold = [(error(fit(plan, fit(start)).effective()), error(fit(plan).effective())) for plan, start in plans_and_starts]
    return exp(sum(log(warm / cold) for warm, cold in warm_and_cold) / len(warm_and_cold))


def test_a_start_is_used():
    rank = FORMATS["svd"].rank(problem("linear").layer, 0.2)
    plan, start = LayerPlan("svd", rank, 0.2), problem("linear").fit(LayerPlan("svd", rank, 0.3))
    assert not torch.equal(problem("linear").fit(plan, start).effective(), problem("linear").fit(plan).effective())


def test_s_alone_needs_none():
    plan, start = LayerPlan(density=0.2), problem("linear").fit(LayerPlan(density=0.3))
    assert torch.equal(problem("linear").fit(plan, start).effective(), problem("linear").fit(plan).effective())


@pytest.mark.parametrize(("kind", "form"), GRID)
def test_from_the_same_rank_and_a_denser_s(kind, form):
    rank = FORMATS[form].rank(problem(kind).layer, 0.2)
    plans = [(LayerPlan(form, rank, 0.2, which), LayerPlan(form, rank, 0.3, which)) for which in KINDS]
    assert mean_ratio(kind, plans) <= WORSE


@pytest.mark.parametrize(("kind", "form"), GRID)
def test_from_the_rank_below_and_the_same_s(kind, form):
    rank, lower = (FORMATS[form].rank(problem(kind).layer, ratio) for ratio in (0.2, 0.12))
    assert mean_ratio(kind, [(LayerPlan(form, rank, 0.2), LayerPlan(form, lower, 0.2))]) <= WORSE
