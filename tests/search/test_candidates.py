import numpy as np
import pytest
from toy import COSTS, DENSE_COST, decoder, limit

from lrsearch.search.candidates import Candidate
from lrsearch.search.parameters import ROUNDING
from lrsearch.search.proposals import Proposals
from lrsearch.search.records import SEARCH
from lrsearch.spec.config import SearchConfig

RNG = 0
LIMITS = {
    "one": {"params": limit("params", 0.8)}, "none": {}, "two": {"params": limit("params", 0.6), "macs": limit("macs", 0.6)},
}


def drawn(limits, front=(), costs=("params",)):
    proposals = Proposals(decoder(limits), costs, SearchConfig(lowest=0.3))
    candidates = proposals.candidates(proposals.parameters)
    return proposals, candidates, candidates.draw(front, np.random.default_rng(RNG))


@pytest.mark.parametrize("costs", [("params",), ("params", "macs")], ids=str)
@pytest.mark.parametrize("name", sorted(LIMITS))
def test_all_are_within_budgets_and_targets_and_none_is_drawn_twice(name, costs):
    proposals, _, found = drawn(LIMITS[name], costs=costs)
    assert len(found) > (3 if name == "two" else 10)
    assert len({c.pick.tobytes() for c in found}) == len(found)
    for candidate in found:
        cost = COSTS(proposals.decoder.plan(candidate.pick)).to_dict()
        assert all(cost[m] <= v * (1 + ROUNDING) for m, v in LIMITS[name].items())
        for metric, (low, high) in proposals.targets.items():
            assert 0.8 * low < cost[metric] / DENSE_COST[metric] <= high + ROUNDING


def test_their_parameters_lead_to_plans_as_good_as_they_are():
    proposals, candidates, found = drawn(LIMITS["one"])
    for candidate in found:
        plan = proposals.plan(SEARCH, candidates.parameters_of(candidate))
        damage = proposals.parameters.damage(candidate.weights)
        assert damage[proposals.decoder.terms(plan)].sum() <= damage[candidate.pick].sum() * (1 + 1e-9)
        assert COSTS(plan).params <= COSTS(proposals.decoder.plan(candidate.pick)).params


def test_costs_are_those_of_the_plans():
    proposals, candidates, found = drawn(LIMITS["two"])
    totals = candidates.total(np.stack([c.pick for c in found]))
    expected = [[getattr(COSTS(proposals.decoder.plan(c.pick)), m) / DENSE_COST[m] for m in candidates.metrics] for c in found]
    assert totals == pytest.approx(np.array(expected))


def test_children_stay_near_a_parent():
    _, candidates, strangers = drawn(LIMITS["none"])
    weights = np.full(len(candidates.parameters.names), 1.0)
    pick = next(c.pick for c in strangers if 0.4 < candidates.total(c.pick[None])[0, 0] < 0.6)
    _, candidates, found = drawn(LIMITS["none"], [Candidate(pick, weights)])
    children = [c for c in found if (c.weights == 1.0).sum() > len(weights) / 2]
    assert children
    ratios = candidates.total(np.stack([c.pick for c in children]))[:, 0] / candidates.total(pick[None])[0, 0]
    assert 0.6 < np.median(ratios) < 1.6


def test_a_latency_predicted_below_nothing_is_near_no_other():
    _, candidates, strangers = drawn(LIMITS["none"])
    totals = candidates.total(np.stack([c.pick for c in strangers]))[:, 0]
    parent = strangers[int(totals.argmax())]
    prices = candidates._price(parent, np.random.default_rng(RNG))
    candidates.fixed = candidates.fixed - np.median(totals)  # so that some plans save more than all there is
    near = candidates._price(parent, np.random.default_rng(RNG))
    assert candidates.total(candidates._solve(parent.weights, near[None]))[0, 0] > 0
    assert candidates.total(candidates._solve(parent.weights, prices[None]))[0, 0] > 0
