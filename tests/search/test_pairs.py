"""Layers that cost less together than each alone: the knapsack chooses for both at once."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrsearch.search.candidates import Candidates
from lrsearch.search.decoder import Decoder
from lrsearch.search.knapsack import Knapsack
from lrsearch.search.one_limit import GAP
from lrsearch.search.pairs import Pair, undominated
from lrsearch.search.parameters import KnapsackParameters
from lrsearch.spec.cost import Cost, CostModel, layer_cost
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.plan import LayerPlan, Plan

FIRST = LayerSpec("first", "conv2d", (32, 16, 3, 3), 1, 64, 64, 64, read_by="second")
MIDDLE = LayerSpec("middle", "conv2d", (32, 1, 3, 3), 32, 64, 64, 64, read_by="second")
SECOND = LayerSpec("second", "conv2d", (16, 32, 1, 1), 1, 64, 64, 64)
OTHER = LayerSpec("other", "linear", (10, 16), 1, 1)
LAYERS = FIRST, MIDDLE, SECOND, OTHER
MENUS = {
    "first": [LayerPlan(), *(LayerPlan("svd", (r,), 0.0) for r in (2, 4, 8)), LayerPlan(density=0.5, pattern="row")],
    "middle": [LayerPlan()],
    "second": [LayerPlan(), *(LayerPlan(density=d, pattern="column") for d in (0.25, 0.5, 0.75)), LayerPlan("svd", (4,), 0.0)],
    "other": [LayerPlan(), LayerPlan(density=0.5)],
}
DAMAGE = {
    "first": np.array([0.0, 3.0, 1.5, 0.4, 2.0]), "middle": np.zeros(1), "second": np.array([0.0, 4.0, 1.0, 0.3, 0.9]),
    "other": np.array([0.0, 0.2]),
}
DENSE = sum((layer_cost(layer, LayerPlan()) for layer in LAYERS), Cost())


def decoder(limits) -> Decoder:
    made = Decoder(CostModel(Cost(), LAYERS, DENSE), MENUS, limits)
    made.learn_damage(DAMAGE)
    return made


@st.composite
def instances(draw):
    """Three layers of two to four choices, the first and last of which are a pair, and a limit."""
    sizes = draw(st.lists(st.integers(2, 4), min_size=3, max_size=3))
    n, whole = sum(sizes), st.integers(10, 40)
    costs = {m: np.array(draw(st.lists(whole, min_size=n, max_size=n)), float) for m in ("params", "macs")}
    damage = np.array(draw(st.lists(whole, min_size=n, max_size=n)), float)
    cells = sizes[0] * sizes[2]
    drawn = st.lists(st.integers(0, 9), min_size=cells, max_size=cells)
    less = {m: np.array(draw(drawn), float).reshape(sizes[0], sizes[2]) for m in costs}
    limits = {m: float(draw(st.integers(20, 120))) for m in draw(st.sampled_from([("params",), ("params", "macs")]))}
    return Knapsack(np.repeat(np.arange(3), sizes), costs, (Pair(0, 2, less),)), damage, limits


@given(instances())
@settings(max_examples=150)
def test_the_pick_of_least_damage_is_found_where_choices_together_cost_less(instance):
    knapsack, damage, limits = instance
    members = [np.flatnonzero(knapsack.layer == k) for k in range(3)]
    picks = np.array(list(product(*members)))
    fitting = np.all([knapsack.total(m, picks) <= limit for m, limit in limits.items()], axis=0)
    pick = knapsack.solve(damage, limits)
    assert (pick is not None) == bool(fitting.any()) or len(limits) > 1
    for metric in ("params", "macs"):
        assert knapsack.cheapest(metric) == knapsack.total(metric, picks).min()
    if pick is not None:
        assert all(knapsack.total(m, pick) <= limit for m, limit in limits.items())
        best = damage[picks[fitting]].sum(1).min()
        assert damage[pick].sum() >= best
        assert len(limits) > 1 or damage[pick].sum() <= best / (1 - GAP)


@given(instances(), st.integers(0, 99))
@settings(max_examples=100)
def test_no_choice_is_left_out_that_some_weights_lead_to(instance, seed):
    knapsack, damage, _ = instance
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 2, len(damage))
    keep = undominated(knapsack.joint, knapsack.layer, damage, kind, knapsack.costs, knapsack.pairs)
    weighted = damage * np.exp(rng.normal(size=2)[kind] + rng.normal(size=3)[knapsack.layer])
    prices = rng.exponential(size=2)
    total = knapsack.joint.summed(weighted) + prices @ np.stack(list(knapsack.joint.costs.values()))
    for slot in range(2):
        mine = knapsack.joint.slot == slot
        assert total[mine & keep].min() == pytest.approx(total[mine].min())


def test_a_decoder_counts_what_a_plan_costs_also_what_feeds_dropped_columns():
    made = decoder({})
    for own, other in product(MENUS["first"], MENUS["second"]):
        plan = Plan({"first": own, "second": other})
        for metric in ("params", "macs", "weight_bytes"):
            assert made.total(metric, made.terms(plan)) == getattr(made.costs(plan), metric)
    columns = Plan({"second": LayerPlan(density=0.25, pattern="column")})
    assert made.costs(columns).macs == DENSE.macs - 24 * (16 + 16 * 9 + 9) * 64


def test_low_rank_and_columns_that_it_feeds_are_chosen_together():
    made = decoder({"macs": 0.25 * DENSE.macs})
    plan = made.solve(made.damage, {})
    assert plan is not None
    assert (plan["first"].format, plan["second"].pattern) == ("svd", "column")
    assert made.costs(plan).macs <= 0.25 * DENSE.macs
    assert sum(layer_cost(layer, plan[layer.name]).macs for layer in LAYERS) > 0.25 * DENSE.macs


def test_candidates_cost_what_their_plans_cost_and_are_within_limits():
    made = decoder({"macs": 0.5 * DENSE.macs})
    parameters = KnapsackParameters(made, {"macs": (0.1, 0.5)})
    drawn = Candidates(parameters, {"macs": 0.5}, {"macs": 0.1})
    found = drawn.draw([], np.random.default_rng(0))
    assert len(found) > 3
    for candidate in found:
        cost = made.costs(made.plan(candidate.pick)).macs / DENSE.macs
        assert drawn.total(candidate.pick[None])[0, 0] == pytest.approx(cost)
        assert cost <= 0.5
