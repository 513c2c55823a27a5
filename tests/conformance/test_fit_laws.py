"""More rank and more values help, what they give together is no worse than apart, and no fit is worse than the simple one.

Errors are those of the layer's output under its inputs, as a share of the output's energy.
"""

from itertools import cycle, pairwise

import pytest
import torch
from catalogue import (
    ACCEPTED,
    DENSER,
    FORMATS,
    HIGHER,
    PATTERNS,
    RATIO,
    Case,
    build,
    compressed,
    each_few,
    each_fitted,
    each_format,
    each_layer,
    each_shape,
    error,
    fit,
    inputs,
    of_layer,
    plan_of,
    problem_of,
    random_fit,
    spec_of,
)

from lrsearch.compress.fit import FitProblem
from lrsearch.compress.matricize import gram, input_rows, to_matrix
from lrsearch.compress.sparsify import select
from lrsearch.spec.pattern import pattern
from lrsearch.spec.plan import LayerPlan

RATIOS, DENSITIES = (0.15, RATIO, 1.0), (0.15, 0.3, 0.6, 0.85, 1.0)
SHARE, ENERGY = 1.02, 0.003  # searches for supports and alternating least squares may end this much above
GRID = [pair for pair in ACCEPTED if pair[0] in ("linear", "conv")]
each_of_grid = pytest.mark.parametrize(("name", "form"), GRID)
BRIEF = [("linear", "svd"), ("linear", "tt"), ("conv", "svd"), ("conv", "tucker2")]  # as most formats are fitted with S in turns, slowly


def in_turn(kinds):
    """Layers and formats with one of the patterns, each time another."""
    return [(*pair, kind) for pair, kind in zip(BRIEF, cycle(kinds), strict=False)]


def no_more(value, bound, exact=False):
    return value <= bound * 1.0001 + 1e-6 if exact else value <= SHARE * bound + ENERGY


def data_free(case):
    """Error of the same plan fitted to the weight alone: truncated, then the largest magnitudes of the rest."""
    spec, plan, problem = case.spec, case.plan, problem_of(case.layer)
    weight = problem.weight
    white = FitProblem(spec, weight, torch.eye(spec.columns).expand(spec.groups, -1, -1))
    low_rank = white.fit(LayerPlan(plan.format, plan.rank, 0.0)).effective() if plan.rank else torch.zeros_like(weight)
    rest = weight - low_rank
    effective = low_rank + rest * select(rest, spec, pattern(plan.pattern), plan.kept(spec))
    return problem.error(effective) / problem.error(torch.zeros_like(weight))


def assert_no_worse_than_its_parts_and_the_data_free_fit(case):
    value = error(case.layer, fit(case.layer, case.plan))
    low_rank = error(case.layer, fit(case.layer, LayerPlan(case.plan.format, case.plan.rank, 0.0)))
    sparse = error(case.layer, fit(case.layer, LayerPlan("dense", (), case.plan.density, case.plan.pattern)))
    assert no_more(value, low_rank), case
    assert no_more(value, sparse), case
    assert no_more(value, data_free(case)), case


@each_layer
@torch.no_grad()
def test_what_a_fit_minimises_is_the_squared_error_of_the_layers_output(name):
    layer, x = build(name), inputs(name)
    c = gram(input_rows(layer, x))
    for case in of_layer(name)[::5]:
        rest = to_matrix(layer.weight, case.spec.groups) - random_fit(case.spec, case.plan).effective()
        squared = (layer(x) - compressed(case)(x)).square().sum()
        torch.testing.assert_close(((rest @ c) * rest).sum(), squared, rtol=1e-4, atol=1e-4)


def assert_whole(name, plan):
    weight = problem_of(name).weight
    assert float((fit(name, plan).effective() - weight).norm()) <= 1e-3 * float(weight.norm()), plan


@each_format
def test_full_rank_reconstructs_the_weight(name, form):
    assert_whole(name, LayerPlan(form, FORMATS[form].max_rank(spec_of(name)), 0.0))


@each_few(("name", "form"), GRID, BRIEF)
def test_full_density_reconstructs_the_weight(name, form):
    assert_whole(name, LayerPlan(form, FORMATS[form].rank(spec_of(name), RATIO), 1.0))
    assert_whole(name, LayerPlan())


@each_format
def test_error_falls_with_rank_and_is_no_worse_than_the_data_free_fits(name, form):
    cases = [Case(name, plan_of(spec_of(name), form, None, ratio)) for ratio in RATIOS]
    errors = [error(name, fit(name, case.plan)) for case in cases]
    assert all(no_more(more, less, form == "svd") for less, more in pairwise(errors)), errors
    assert all(no_more(e, data_free(case), form == "svd") for e, case in zip(errors, cases, strict=True)), errors
    assert errors[0] <= 1


@each_shape
def test_error_falls_with_density_and_is_no_worse_than_the_data_free_fits(name):
    for kind in PATTERNS:
        if not pattern(kind).refusal(spec_of(name)):
            densities = DENSITIES if pattern(kind).density is None else (PATTERNS[kind],)
            cases = [Case(name, LayerPlan("dense", (), density, kind)) for density in densities]
            errors = [error(name, fit(name, case.plan)) for case in cases]
            assert all(no_more(more, less, exact=True) for less, more in pairwise(errors)), (kind, errors)
            assert all(no_more(e, data_free(case)) for e, case in zip(errors, cases, strict=True)), (kind, errors)
            assert errors[0] <= 1


@each_few(("name", "form", "kind"), ((*pair, kind) for pair in GRID for kind in HIGHER), in_turn(HIGHER))
def test_joint_error_falls_with_rank(name, form, kind):
    lower, higher = (plan_of(spec_of(name), form, kind, ratio) for ratio in (RATIO / 2, RATIO))
    assert no_more(error(name, fit(name, higher)), error(name, fit(name, lower))), higher


@each_few(("name", "form", "kind"), ((*pair, kind) for pair in GRID for kind in DENSER), in_turn(DENSER))
def test_joint_error_falls_with_density(name, form, kind):
    plan = plan_of(spec_of(name), form, kind)
    denser = LayerPlan(form, plan.rank, 1.5 * plan.density, kind)
    assert no_more(error(name, fit(name, denser)), error(name, fit(name, plan))), plan


@pytest.mark.slow
@each_of_grid
def test_every_joint_fit_is_no_worse_than_its_parts_and_the_data_free_fit(name, form):
    for case in of_layer(name, form):
        if case.plan.density:
            assert_no_worse_than_its_parts_and_the_data_free_fit(case)


@each_fitted(of=lambda case: case.plan.rank and case.plan.density)
def test_a_joint_fit_of_every_kind_of_layer_is_no_worse_than_its_parts_and_the_data_free_fit(case):
    assert_no_worse_than_its_parts_and_the_data_free_fit(case)
    fitted = fit(case.layer, case.plan)
    assert int(fitted.mask.sum()) == case.plan.kept(case.spec)
    assert not fitted.sparse[~fitted.mask].any()
