from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrsearch.search.knapsack import Knapsack
from lrsearch.search.one_limit import GAP


@st.composite
def instances(draw, metrics):
    """Two to five layers of one to five choices, with damage and whole costs of each choice, and limits."""
    sizes = draw(st.lists(st.integers(1, 5), min_size=2, max_size=5))
    n = sum(sizes)
    whole = st.integers(0, 40)
    costs = {m: np.array(draw(st.lists(whole, min_size=n, max_size=n)), float) for m in metrics}
    damage = np.array(draw(st.lists(whole, min_size=n, max_size=n)), float)
    limits = {m: float(draw(st.integers(0, 40 * len(sizes)))) for m in metrics}
    return Knapsack(np.repeat(np.arange(len(sizes)), sizes), costs), damage, limits


def brute_force(knapsack, damage, limits, allowed=None):
    """Least total damage of any pick within the limits, or None."""
    members = [[i for i in np.flatnonzero(knapsack.layer == k) if allowed is None or allowed[i]] for k in range(knapsack.layers)]
    fitting = (list(p) for p in product(*members) if all(knapsack.costs[m][list(p)].sum() <= limits[m] for m in limits))
    return min((damage[p].sum() for p in fitting), default=None)


def check(knapsack, pick, limits):
    assert knapsack.layer[pick].tolist() == list(range(knapsack.layers))
    assert all(knapsack.costs[m][pick].sum() <= limits[m] for m in limits)


@given(instances(["params"]))
@settings(deadline=None, max_examples=150)
def test_one_limit_is_met_exactly_when_it_can_be_with_the_least_damage(instance):
    knapsack, damage, limits = instance
    pick, best = knapsack.solve(damage, limits), brute_force(*instance)
    assert (pick is None) == (best is None)
    if pick is not None:
        check(knapsack, pick, limits)
        assert best <= damage[pick].sum() <= best / (1 - GAP)


@given(instances(["params", "macs"]))
@settings(deadline=None, max_examples=150)
def test_two_limits_are_never_exceeded(instance):
    knapsack, damage, limits = instance
    pick = knapsack.solve(damage, limits)
    if brute_force(*instance) is None:
        assert pick is None
    elif pick is not None:
        check(knapsack, pick, limits)


def two_binding_limits(random, decades):
    """Five layers of five choices whose damages span ``decades``, and limits a third of the way up from the cheapest pick."""
    layer = np.repeat(np.arange(5), 5)
    costs = {m: random.integers(1, 60, 25).astype(float) for m in ("params", "macs")}
    ends = {m: [f.reduceat(c, np.arange(0, 25, 5)).sum() for f in (np.minimum, np.maximum)] for m, c in costs.items()}
    limits = {m: float(np.floor(low + (high - low) / 3)) for m, (low, high) in ends.items()}
    return Knapsack(layer, costs), 10.0 ** (-decades * random.random(25)), limits


@pytest.mark.parametrize("decades", [1, 8])
def test_two_limits_cost_little_more_damage_than_the_least(decades):
    random, worse = np.random.default_rng(0), []
    for _ in range(25):
        knapsack, damage, limits = two_binding_limits(random, decades)
        pick, best = knapsack.solve(damage, limits), brute_force(knapsack, damage, limits)
        assert (pick is None) == (best is None)
        if pick is not None:
            check(knapsack, pick, limits)
            worse.append(damage[pick].sum() / best)
    assert np.mean(worse) < 1.005
    assert max(worse) < 1.1


@given(instances(["params"]))
@settings(deadline=None, max_examples=50)
def test_the_cheapest_pick_is_found_at_its_own_cost(instance):
    knapsack, damage, _ = instance
    limits = {"params": knapsack.cheapest("params")}
    assert limits["params"] == sum(knapsack.costs["params"][knapsack.layer == k].min() for k in range(knapsack.layers))
    check(knapsack, knapsack.solve(damage, limits), limits)
    assert knapsack.solve(damage, {"params": limits["params"] - 1}) is None


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_thirty_layers_do_the_least_damage(share):
    random = np.random.default_rng(0)
    sizes, layer = random.integers(10, 60, 30), np.repeat(np.arange(30), 5)
    costs = np.floor(sizes[:, None] * np.array([1, 0.6, 0.35, 0.2, 0.1])).ravel()
    damage = np.sort(random.random((30, 5)) * random.random((30, 1)), axis=1).ravel()
    knapsack, limit = Knapsack(layer, {"params": costs}), int(share * sizes.sum())
    best = np.zeros(limit + 1)  # least damage within each whole cost, layer by layer
    for k in range(30):
        choices = zip(costs[layer == k].astype(int), damage[layer == k], strict=True)
        best = np.min([np.r_[np.full(c, np.inf), best[: limit + 1 - c]] + d for c, d in choices], axis=0)
    pick = knapsack.solve(damage, {"params": limit})
    check(knapsack, pick, {"params": limit})
    assert best[limit] * (1 - 1e-9) <= damage[pick].sum() <= best[limit] / (1 - GAP)


def example():
    """Two layers: dense, half and tenth, with falling cost and rising damage."""
    costs = {"params": np.array([100.0, 50.0, 10.0, 40.0, 20.0, 4.0])}
    return Knapsack(np.array([0, 0, 0, 1, 1, 1]), costs), np.array([0.0, 1.0, 10.0, 0.0, 3.0, 4.0])


@pytest.mark.parametrize(("limit", "expected"), [(140, [0, 3]), (100, [1, 3]), (60, [1, 5]), (54, [1, 5]), (14, [2, 5])])
def test_picks_by_hand(limit, expected):
    knapsack, damage = example()
    assert knapsack.solve(damage, {"params": limit}).tolist() == expected


def test_what_rounding_leaves_is_spent():
    """The relaxation splits the layer between 100 and 10; 60 lies above that line, but it fits and harms less than 10."""
    knapsack = Knapsack(np.array([0, 0, 0, 1]), {"params": np.array([100.0, 60.0, 10.0, 0.0])})
    assert knapsack.solve(np.array([0.0, 8.0, 10.0, 0.0]), {"params": 70}).tolist() == [1, 3]


def test_only_allowed_choices_are_picked():
    knapsack, damage = example()
    allowed = np.array([True, False, True, True, True, False])
    assert knapsack.solve(damage, {"params": 60}, allowed).tolist() == [2, 3]
    assert knapsack.solve(damage, {"params": 14}, allowed) is None


def test_without_limits_the_least_damage_is_picked():
    knapsack, damage = example()
    assert knapsack.solve(damage, {}).tolist() == [0, 3]
    assert knapsack.solve(np.zeros(6), {"params": 60}) is not None
