"""What the spec refuses, and that it refuses exactly that."""

import pytest
from catalogue import ALL, CASES, LAYERS, PATTERNS, REFUSED, build, plan_of, spec_of
from torch import nn

from lrsearch.compress import artifact
from lrsearch.errors import ArtifactError
from lrsearch.spec.formats import FORMATS
from lrsearch.spec.pattern import pattern
from lrsearch.spec.plan import LayerPlan, Plan
from lrsearch.spec.space import Rule, Space

LINEAR = {"linear", "linear no bias", "linear 7 to 5", "linear 1 to n", "linear n to 1"}
ONE_BY_ONE = LINEAR | {"conv 1x1", "conv 1x1 strided", "conv 1x1 grouped", "conv1d 1"}
ONE_DIMENSIONAL = ONE_BY_ONE | {"conv 1x5", "conv 5x1", "conv1d strided", "conv1d dilated", "conv1d grouped"}
DEPTHWISE = {"conv depthwise", "conv1d depthwise"}
GROUPED = DEPTHWISE | {"conv grouped", "conv 1x1 grouped", "conv1d grouped"}
ODD_INPUTS = DEPTHWISE | {"linear 7 to 5", "linear 1 to n", "conv 1 to n"}
ODD_OUTPUTS = {"linear 7 to 5", "linear n to 1", "conv n to 1"}
STRANGE = {"conv3d", "conv3d grouped", "conv transposed", "conv transposed grouped", "conv transposed depthwise", "conv1d transposed"}
NARROW = {"conv3d grouped", "conv transposed depthwise"}

OF_FORMAT = {
    "svd": DEPTHWISE | {"conv transposed depthwise"}, "spatial-svd": DEPTHWISE | ONE_DIMENSIONAL | STRANGE,
    "tucker2": DEPTHWISE | ONE_BY_ONE | STRANGE, "cp": DEPTHWISE | ONE_BY_ONE | STRANGE, "tt": DEPTHWISE | {"conv 1x1 grouped"} | STRANGE,
}  # fmt: skip
OF_PATTERN = {
    "unstructured": set(), "2:4": ODD_INPUTS | NARROW, "4:8": ODD_INPUTS | NARROW | {"conv3d", "conv transposed grouped"},
    "block4x1": ODD_OUTPUTS | DEPTHWISE | {"conv3d", "conv3d grouped"}, "block2x2": ODD_INPUTS | ODD_OUTPUTS | NARROW,
    "column": GROUPED | STRANGE, "row": GROUPED | STRANGE,
}  # fmt: skip


@pytest.mark.parametrize("form", OF_FORMAT)
def test_a_format_refuses_exactly_these_layers(form):
    assert {name for name in LAYERS if FORMATS[form].refusal(spec_of(name))} == OF_FORMAT[form]


@pytest.mark.parametrize("kind", PATTERNS)
def test_a_pattern_refuses_exactly_these_layers(kind):
    assert {name for name in LAYERS if pattern(kind).refusal(spec_of(name))} == OF_PATTERN[kind]


def test_a_plan_is_refused_where_its_format_or_its_pattern_is():
    for case in ALL:
        low_rank = case.plan.rank and FORMATS[case.plan.format].refusal(case.spec)
        sparse = case.plan.density and pattern(case.plan.pattern).refusal(case.spec)
        assert bool(case.plan.refusal(case.spec)) == bool(low_rank or sparse), case


def test_every_refusal_says_why():
    for case in REFUSED:
        reason = case.plan.refusal(case.spec)
        assert len(reason.split()) > 3, case
        assert "\n" not in reason, case


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_has_layers_that_it_accepts_and_leaves_depthwise_ones_alone(form):
    accepted = {case.layer for case in CASES if case.plan.format == form}
    assert accepted
    assert not accepted & (DEPTHWISE | {"conv transposed depthwise"})


@pytest.mark.parametrize("form", FORMATS)
def test_a_wrong_number_of_ranks_is_refused(form):
    case = next(case for case in CASES if case.plan.format == form)
    for rank in ((*case.plan.rank, 1), case.plan.rank[:-1]):
        assert not rank or LayerPlan(form, rank, 0.0).refusal(case.spec)


@pytest.mark.parametrize("form", FORMATS)
def test_the_largest_rank_is_reached_and_none_is_below_one(form):
    for name in LAYERS:
        if not FORMATS[form].refusal(spec := spec_of(name)):
            most = FORMATS[form].max_rank(spec)
            assert FORMATS[form].rank(spec, 1.0) == most, name
            assert all(1 <= low <= high for low, high in zip(FORMATS[form].rank(spec, 1e-9), most, strict=True)), name


@pytest.mark.parametrize("name", LAYERS)
def test_no_menu_offers_what_is_refused(name):
    spec = spec_of(name)
    menu = Space(rules=(Rule(formats=tuple(FORMATS), patterns=tuple(PATTERNS)),)).menus((spec,))[spec.name]
    assert not [plan for plan in menu if plan.refusal(spec)]
    assert {plan.pattern for plan in menu if plan.density < 1} <= {k for k in PATTERNS if not pattern(k).refusal(spec)}


@pytest.mark.parametrize(("name", "form", "kind"), [("conv depthwise", "svd", None), ("conv grouped", None, "row")])
def test_an_artifact_with_a_refused_plan_is_refused(name, form, kind, tmp_path):
    model, plan = nn.Sequential(build(name)), Plan({"0": plan_of(spec_of(name), form, kind)})
    artifact.save(model, plan, tmp_path / "model", {})
    with pytest.raises(ArtifactError, match="every layer must be able to become what the plan says"):
        artifact.load(tmp_path / "model", model)
