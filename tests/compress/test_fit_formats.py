"""Fits of every format and pattern; the conventions of test_fit hold for them too."""

import pytest
import torch

from lrsearch.compress.fit import FitProblem, low_rank
from lrsearch.compress.sparsify import contract, expand
from lrsearch.spec.formats import FORMATS
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.pattern import pattern
from lrsearch.spec.plan import LayerPlan

CONV = LayerSpec("conv", "conv2d", (8, 6, 3, 3))
LINEAR = LayerSpec("linear", "linear", (12, 16))
GROUPED = LayerSpec("grouped", "conv2d", (8, 4, 3, 3), 2)
CASES = {f"{name} {layer.name}": (name, layer) for name in FORMATS for layer in (CONV, LINEAR, GROUPED) if not FORMATS[name].refusal(layer)}
PATTERNS = ("unstructured", "row", "column", "2:4", "block2x2")
PATTERNED = {
    f"{name} {layer.name}": (name, layer) for name in PATTERNS for layer in (LINEAR, GROUPED, CONV) if not pattern(name).refusal(layer)
}
cases = pytest.mark.parametrize(("name", "layer"), CASES.values(), ids=CASES)


@pytest.fixture
def problem_of():
    """A layer's problem: a random weight unless one is given, correlated inputs."""

    def problem(layer, weight=None):
        groups, _, columns = layer.matrix_shape
        x = (torch.randn(groups, 6 * columns, columns) @ torch.randn(groups, columns, columns)).relu()
        return FitProblem(layer, torch.randn(layer.matrix_shape) if weight is None else weight, x.mT @ x / (6 * columns))

    return problem


@cases
def test_a_weight_of_the_rank_is_found_again(problem_of, name, layer):
    form = low_rank(name)
    rank = form.rank(layer, 0.3)
    weight = form.compose(layer, [torch.randn(shape) for shape in form.shapes(layer, rank)])
    problem = problem_of(layer, weight)
    fit = problem.fit(LayerPlan(name, rank, 0.0))
    assert problem.error(fit.effective()) < 0.02 * problem.error(torch.zeros_like(weight))


@cases
def test_the_error_falls_with_the_rank(problem_of, name, layer):
    problem = problem_of(layer)
    ranks = [FORMATS[name].rank(layer, ratio) for ratio in (0.25, 0.5, 0.75)]
    errors = [problem.error(problem.fit(LayerPlan(name, rank, 0.0)).effective()) for rank in ranks]
    assert problem.error(torch.zeros_like(problem.weight)) > errors[0] > errors[1] > errors[2]


@cases
def test_the_fit_looks_at_the_inputs(problem_of, name, layer):
    """It is better than the fit for uncorrelated inputs."""
    problem = problem_of(layer)
    plain = FitProblem(layer, problem.weight, torch.eye(layer.columns).expand_as(problem.gram))
    plan = LayerPlan(name, FORMATS[name].rank(layer, 0.3), 0.0)
    assert problem.error(problem.fit(plan).effective()) < 0.97 * problem.error(plain.fit(plan).effective())


@cases
def test_a_sparse_part_helps_and_factors_are_balanced(problem_of, name, layer):
    problem, rank = problem_of(layer), FORMATS[name].rank(layer, 0.2)
    alone, both = (problem.fit(LayerPlan(name, rank, density)) for density in (0.0, 0.2))
    assert problem.error(both.effective()) < 0.9 * problem.error(alone.effective())
    assert int(both.mask.sum()) == both.plan.kept(layer)
    assert not both.sparse[~both.mask].any()
    torch.testing.assert_close(both.low_rank() + both.sparse, both.effective())
    norms = torch.stack([f.norm() for f in both.factors])
    assert norms.max() < 1.5 * norms.min()


@pytest.mark.parametrize(("name", "layer"), PATTERNED.values(), ids=PATTERNED)
@pytest.mark.parametrize("rank", [(), (2,)], ids=str)
def test_fits_have_the_pattern_and_are_better_than_none(problem_of, name, layer, rank):
    kind, problem = pattern(name), problem_of(layer)
    plan = LayerPlan("svd" if rank else "dense", rank, 0.5, name)
    fit = problem.fit(plan)
    assert int(fit.mask.sum()) == plan.kept(layer) > 0
    assert torch.equal(expand(contract(fit.mask, layer, kind), layer, kind), fit.mask)
    assert not fit.sparse[~fit.mask].any()
    without = problem.fit(LayerPlan("svd", rank, 0.0)).effective() if rank else torch.zeros_like(fit.sparse)
    assert problem.error(fit.effective()) < 0.9 * problem.error(without)


def test_less_structure_leaves_less_error(problem_of):
    problem = problem_of(LINEAR)
    errors = {name: problem.error(problem.fit(LayerPlan(density=0.5, pattern=name)).effective()) for name in PATTERNS}
    assert errors["unstructured"] < errors["2:4"] < errors["column"]
    assert errors["unstructured"] < errors["block2x2"] < errors["row"]


@cases
def test_times_is_the_composed_weight_times_a_matrix(name, layer):
    form, matrix = low_rank(name), torch.randn(layer.groups, layer.columns, layer.columns)
    factors = [torch.randn(shape) for shape in form.shapes(layer, form.rank(layer, 0.3))]
    torch.testing.assert_close(form.times(layer, factors, matrix), form.compose(layer, factors) @ matrix, rtol=1e-4, atol=1e-4)
