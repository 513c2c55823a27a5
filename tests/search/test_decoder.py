import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, milp
from toy import COSTS, DENSE_COST, LAYERS, LIMITED, UNIT, decoder, limit

from lrsearch.errors import BudgetError
from lrsearch.search.controls import CONTROLS, ladder
from lrsearch.search.proposals import Proposals
from lrsearch.search.records import DENSE, SEARCH
from lrsearch.spec.config import SearchConfig
from lrsearch.spec.cost import layer_cost
from lrsearch.spec.metrics import METRICS
from lrsearch.spec.plan import LayerPlan


def feasible(limits) -> bool:
    """Whether any plan at all meets ``limits``, by exhaustive integer programming."""
    made = decoder(limits)
    n = len(made.choices)
    one_each = LinearConstraint((made.layer == np.arange(len(LAYERS))[:, None]).astype(float), 1, 1)
    ends = {m: v - getattr(COSTS.fixed, m) + 0.5 * UNIT[m] for m, v in limits.items()}
    within = [LinearConstraint(made.knapsack.costs[m][None] / UNIT[m], -np.inf, end / UNIT[m]) for m, end in ends.items()]
    return milp(np.zeros(n), constraints=[one_each, *within], integrality=np.ones(n), bounds=(0, 1)).status == 0


budgets = st.dictionaries(st.sampled_from(LIMITED), st.floats(0, 1)).map(lambda d: {m: limit(m, r) for m, r in d.items()})
unit = st.floats(0, 1)


@settings(max_examples=60, deadline=None)
@given(budgets, st.data())
def test_every_parameter_vector_decodes_to_a_plan_within_all_budgets(limits, data):
    made = decoder(limits)
    try:
        made.refuse_unreachable()
    except BudgetError:
        return
    objectives = data.draw(st.lists(st.sampled_from(LIMITED), min_size=1, unique=True))
    proposals = Proposals(made, objectives, SearchConfig(lowest=data.draw(st.floats(0.01, 1))))
    parameters = {}
    for key, d in proposals.space.items():
        u = data.draw(unit)
        parameters[key] = float(np.clip(d.low * (d.high / d.low) ** u, d.low, d.high)) if d.log else d.low + u * (d.high - d.low)
    plan = proposals.plan(SEARCH, parameters)
    cost = COSTS(plan).to_dict()
    assert all(cost[m] <= v for m, v in limits.items())


@pytest.mark.parametrize("limits", [{"params": 194, "macs": 30650}, {"params": 199, "weight_bytes": 3145, "macs": 29423}], ids=str)
def test_tight_budgets_that_are_accepted_have_a_plan_under_all_weights(limits):
    made = decoder(limits)
    made.refuse_unreachable()
    proposals, rng = Proposals(made, ["params"], SearchConfig()), np.random.default_rng(0)
    neutral = proposals.parameters.of(None) | {"target/params": proposals.targets["params"][1]}
    plans = [proposals.plan(SEARCH, {k: v or rng.uniform(-3, 3) for k, v in neutral.items()}) for _ in range(300)]
    assert None not in plans


@settings(max_examples=60, deadline=None)
@given(budgets)
@example({"params": 519, "weight_bytes": 3836, "macs": 13664})
@example({"params": 1828, "macs": 47928, "weight_bytes": 902})
def test_budgets_are_refused_exactly_where_no_plan_meets_them(limits):
    try:
        decoder(limits).refuse_unreachable()
        refused = False
    except BudgetError:
        refused = True
    assert refused != feasible(limits)


@pytest.mark.parametrize("metric", METRICS)
def test_an_unreachable_budget_is_told_the_smallest_which_is_reachable(metric):
    with pytest.raises(BudgetError, match=rf"^budget\.{metric}: ") as caught:
        decoder({metric: decoder({}).smallest(metric) - UNIT[metric]}).refuse_unreachable()
    least = float(re.search(r"smallest possible is ([\d,.]+)", str(caught.value)).group(1).replace(",", ""))
    assert ("weights: {values: int8}" in str(caught.value)) == (metric == "weight_bytes")
    made = decoder({metric: least})
    made.refuse_unreachable()
    assert COSTS(made.solve(made.damage, {})).to_dict()[metric] == pytest.approx(least, abs=1e-4)


def test_budgets_that_exclude_each_other_are_refused_together():
    limits = {"params": limit("params", 0.0), "macs": limit("macs", 0.0)}
    with pytest.raises(BudgetError, match="all budgets at once"):
        decoder(limits).refuse_unreachable()


ALLOWED = {"sparse-only": {"sparse"}, "low-rank-only": {"low-rank"}, "knapsack": {"sparse", "low-rank", "low-rank+sparse"}}


@pytest.mark.parametrize("control", CONTROLS)
def test_controls_meet_their_targets_and_use_only_their_families(control):
    limits = {"params": limit("params", 0.9), "weight_bytes": limit("weight_bytes", 0.8)}
    proposals = Proposals(decoder(limits), ["params"], SearchConfig(lowest=0.3, control_points=5))
    plans = [(p["target/params"], proposals.plan(s, p)) for s, p in proposals.controls() if s == control]
    assert len(plans) == 5
    assert any(plan for _, plan in plans)
    for target, plan in ((t, p) for t, p in plans if p):
        cost = COSTS(plan).to_dict()
        assert cost["params"] <= target * DENSE_COST["params"]
        assert cost["weight_bytes"] <= limits["weight_bytes"]
        assert plan.layers
        assert {p.family for p in plan.layers.values()} <= ALLOWED.get(control, {"sparse", "low-rank", "low-rank+sparse"})


def test_uniform_gives_every_layer_about_the_same_share():
    plan = decoder({}).uniform({"params": 0.5 * DENSE_COST["params"]})
    shares = [layer_cost(s, plan[s.name]).params / s.numel for s in LAYERS]
    assert max(shares) < 0.6
    assert min(shares) > 0.3


def test_a_control_that_cannot_reach_its_target_has_no_plan():
    proposals = Proposals(decoder({"macs": limit("macs", 0.3)}), ["params"], SearchConfig())
    low = {"target/params": proposals.targets["params"][0]}
    assert proposals.plan("sparse-only", low) is None
    assert proposals.plan(DENSE, low) is None


def test_the_weights_of_a_trial_move_its_plan():
    proposals = Proposals(decoder({"params": limit("params", 0.5)}), ["params"], SearchConfig(lowest=0.3))
    neutral = proposals.parameters.of(None) | {"target/params": 0.4}
    light, heavy = (proposals.plan(SEARCH, {**neutral, "layer/stem": v})["stem"] for v in (-3.0, 3.0))
    assert layer_cost(LAYERS[0], light).params < layer_cost(LAYERS[0], heavy).params
    families = {**neutral, "family/low-rank": -3.0, "family/low-rank+sparse": 3.0}
    low_rank = [p.family == "low-rank" for p in proposals.plan(SEARCH, families).layers.values()]
    assert sum(low_rank) > sum(p.family == "low-rank" for p in proposals.plan(SEARCH, neutral).layers.values())


def test_the_knapsack_control_is_the_search_with_neutral_weights():
    proposals = Proposals(decoder({"params": limit("params", 0.7)}), ["params"], SearchConfig())
    for source, parameters in proposals.controls():
        if source == "knapsack":
            assert proposals.plan(source, parameters) == proposals.plan(SEARCH, parameters)


def test_terms_are_the_choices_of_a_plan():
    made = decoder({})
    plan = made.solve(made.damage, {"params": 0.4 * DENSE_COST["params"]})
    assert {s.name: p for s, p in (made.choices[i] for i in made.terms(plan)) if p != LayerPlan()} == dict(plan.layers)


def test_a_ladder_goes_down_in_equal_ratios():
    assert ladder(0.1, 0.4, 3) == pytest.approx([0.4, 0.2, 0.1])
    assert ladder(0.1, 0.4, 1) == [0.4]


def test_an_unreachable_budget_names_what_stays_dense():
    with pytest.raises(BudgetError, match=r"widen the space or the budget\. Stays dense: lstm \(40%: its kernel\)\.$"):
        decoder({"params": 1}).refuse_unreachable(left_dense="lstm (40%: its kernel)")
