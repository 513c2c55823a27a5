"""Supports of S: exactly what the plan keeps, in exactly the pattern."""

import torch
from catalogue import Case, build, compressed, each_group, each_layer, fit, of_layer, random_fit
from hypothesis import given, settings
from hypothesis import strategies as st

from lrsearch.compress.fit import FitProblem
from lrsearch.compress.matricize import to_weight
from lrsearch.compress.modules import compressed_layer
from lrsearch.compress.sparsify import select
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.pattern import pattern
from lrsearch.spec.plan import LayerPlan


def has_pattern(mask, spec, name):
    """Whether ``mask`` (groups, rows, columns) is made as ``name`` says; outputs of one group are neighbours."""
    kind, mask = pattern(name), mask.reshape(spec.rows, spec.channels, -1).int()
    if kind.name == "n:m":
        return bool((mask.unflatten(1, (-1, kind.width)).sum(2) == kind.height).all())
    if kind.name == "block":
        blocks = mask.unflatten(1, (-1, kind.width)).unflatten(0, (-1, kind.height))
        return bool((blocks.amax((1, 3)) == blocks.amin((1, 3))).all())
    whole = {"column": (0, 2), "row": (1, 2)}.get(kind.name, ())
    return not whole or bool((mask.amax(whole) == mask.amin(whole)).all())


def assert_keeps(fitted, case):
    assert int(fitted.mask.sum()) == case.plan.kept(case.spec), case
    assert has_pattern(fitted.mask, case.spec, case.plan.pattern), case
    assert not fitted.sparse[~fitted.mask].any(), case


@each_layer
def test_a_fit_keeps_exactly_what_the_plan_says_in_its_pattern(name):
    for case in of_layer(name, "dense"):
        assert_keeps(fit(name, case.plan), case)


@each_layer
def test_a_kept_value_that_is_zero_is_stored_all_the_same(name):
    for case in of_layer(name, "dense"):
        spec = case.spec
        fitted = FitProblem(spec, torch.zeros(spec.matrix_shape), torch.eye(spec.columns).expand(spec.groups, -1, -1)).fit(case.plan)
        assert_keeps(fitted, case)
        assert compressed_layer(build(name), spec, case.plan, fitted).values.numel() == case.plan.kept(spec), case


@each_group
def test_a_layer_stores_exactly_the_factors_the_kept_values_in_their_places_and_the_bias(cases):
    base = build(cases[0].layer)
    for case in cases:
        fitted, small, kept = random_fit(case.spec, case.plan), compressed(case), case.plan.kept(case.spec)
        assert (0 if small.values is None else small.values.numel()) == kept, case
        assert (small.bitmask is None) == (kept == 0), case
        if small.values is not None:
            assert torch.equal(small.sparse_weight(), to_weight(fitted.sparse, case.spec)), case
        assert [tuple(f.shape) for f in small.factors] == [tuple(f.shape) for f in fitted.factors], case
        assert (small.bias is None) == (base.bias is None), case
        assert small.bias is None or torch.equal(small.bias, base.bias), case


@st.composite
def layers_and_plans(draw):
    name = draw(st.sampled_from(["unstructured", "1:2", "2:4", "3:4", "4:8", "block1x4", "block3x2", "column", "row"]))
    kind, groups = pattern(name), draw(st.integers(1, 3)) if name not in ("column", "row") else 1
    wide, high = (kind.width if kind.name in ("n:m", "block") else 1), (kind.height if kind.name == "block" else 1)
    rows, channels = groups * high * draw(st.integers(1, 3)), wide * draw(st.integers(1, 3))
    kernel = draw(st.sampled_from([(1, 1), (1, 3), (2, 2)]))
    density = kind.density or draw(st.floats(0, 1))
    return LayerSpec("layer", "conv2d", (rows, channels, *kernel), groups), LayerPlan("dense", (), density, name)


@given(layers_and_plans(), st.integers(0, 99))
@settings(deadline=None, max_examples=150, derandomize=True)
def test_supports_of_any_shape_have_the_pattern_and_the_largest_energy(layer_and_plan, seed):
    spec, plan = layer_and_plan
    kind, kept = pattern(plan.pattern), plan.kept(spec)
    values, others = torch.randn(2, *spec.matrix_shape, generator=torch.Generator().manual_seed(seed))
    values = values.round()  # many ties and zeros
    mask = select(values, spec, kind, kept)
    assert not plan.refusal(spec)
    assert int(mask.sum()) == kept
    assert abs(kept - plan.density * spec.numel) <= kind.atom(spec) / 2 + 1e-6
    assert has_pattern(mask, spec, plan.pattern)
    assert (values * mask).square().sum() >= (values * select(others, spec, kind, kept)).square().sum()


def test_a_density_that_rounds_to_nothing_keeps_nothing():
    small = compressed(Case("conv n to 1", LayerPlan(density=0.5, pattern="row")))
    assert small.values.numel() == 0
    assert small.bitmask is None
    torch.testing.assert_close(small(torch.ones(2, 8, 5, 5)), small.bias.view(1, 1, 1, 1).expand(2, 1, 3, 3))
