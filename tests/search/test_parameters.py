import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import COSTS, DENSE_COST, LAYERS, decoder, limit

from lrsearch.search.parameters import PARAMETERS, DirectParameters, ratios
from lrsearch.search.proposals import Proposals
from lrsearch.search.records import SEARCH
from lrsearch.spec.config import SearchConfig
from lrsearch.spec.plan import LayerPlan

LIMITS = {"params": limit("params", 0.5), "macs": limit("macs", 0.7)}


def proposals(parameters, groups=(), limits=LIMITS) -> Proposals:
    config = SearchConfig(parameters=parameters, groups=groups, sampler="random", lowest=0.2, control_points=3)
    return Proposals(decoder(limits), ["params"], config)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(PARAMETERS)), st.data())
def test_all_parameters_lead_to_a_plan_within_budgets_and_targets(kind, data):
    made = proposals(kind)
    values = {k: data.draw(st.floats(d.low, d.high), label=k) for k, d in made.space.items()}
    cost = COSTS(made.plan(SEARCH, values)).to_dict()
    assert all(cost[m] <= LIMITS[m] for m in LIMITS)
    assert cost["params"] <= values["target/params"] * DENSE_COST["params"] * (1 + 1e-12)


@pytest.mark.parametrize("kind", sorted(PARAMETERS))
def test_layers_of_a_group_share_their_parameters(kind):
    made = proposals(kind, ("*wise",))
    own = {k for k in made.space if not k.startswith(("target/", "family/"))}
    assert {k.partition("/")[2] for k in own} == {"stem", "*wise", "head"}


def test_direct_parameters_are_ranks_and_densities():
    made = proposals("direct", limits={})
    asked = made.parameters.of(None) | {"target/params": made.targets["params"][1], "rank/head": 0.25, "density/head": 0.0}
    plan = made.plan(SEARCH, asked)
    assert plan["head"].family == "low-rank"
    assert list(plan.layers) == ["head"]


def test_direct_parameters_of_a_plan_lead_back_to_it():
    made = proposals("direct", limits={})
    for source, parameters in made.controls():
        plan = made.plan(source, parameters)
        if plan is not None and parameters["target/params"] > 0.25:
            assert COSTS(made.plan(SEARCH, parameters)).params == pytest.approx(COSTS(plan).params, rel=0.25)


def test_the_scale_keeps_the_ratios_of_the_layers():
    made = proposals("direct", limits={})
    values = {k: 0.8 if "head" in k else 0.4 for k in made.space if not k.startswith(("target/", "rank/"))}
    plan = made.plan(SEARCH, values | {k: 0.0 for k in made.space if k.startswith("rank/")} | {"target/params": 0.3})
    densities = {n: plan[n].density for n in ("stem", "pointwise", "head")}
    assert densities["head"] > 1.4 * densities["stem"]
    assert densities["stem"] == pytest.approx(densities["pointwise"], rel=0.35)


@pytest.mark.parametrize(("plan", "expected"), [
    (LayerPlan(), (0.0, 1.0)), (LayerPlan(density=0.3), (0.0, 0.3)), (LayerPlan("svd", (6,), 0.1), (6 / 24, 0.1)),
])
def test_ratios_of_a_layers_plan(plan, expected):
    assert ratios(LAYERS[-1], plan) == pytest.approx(expected)


def test_equally_near_choices_are_told_apart_by_their_damage():
    made = proposals("direct", limits={}).parameters
    assert isinstance(made, DirectParameters)
    pick = made._nearest(made.ratios[made.decoder.terms(made.decoder.solve(made.decoder.damage, {"params": 0.4 * DENSE_COST["params"]}))])
    apart = np.abs(made.ratios - made.ratios[pick][made.decoder.layer]).sum(1) < 1e-9
    assert all(made.decoder.damage[i] <= made.decoder.damage[(made.decoder.layer == k) & apart].min() for k, i in enumerate(pick))
