"""A fit that starts from a neighbouring one is nearly as good as one that starts from nothing.

Single supports may come out either way, so it is the geometric mean over the patterns that counts.
"""

from math import exp, log

import pytest
from catalogue import ACCEPTED, DENSER, HIGHER, RATIO, error, fit, plan_of, problem_of, spec_of

from lrsearch.spec.plan import LayerPlan

WORSE = 1.05
LAYERS = ("linear", "conv")
GRID = [pair for pair in ACCEPTED if pair[0] in LAYERS]


def mean_ratio(name, plans_and_starts):
    """How many times the error of a cold fit a warm one has."""
    warm_and_cold = [
        (error(name, problem_of(name).fit(plan, fit(name, start))), error(name, fit(name, plan))) for plan, start in plans_and_starts
    ]
    return exp(sum(log(warm / cold) for warm, cold in warm_and_cold) / len(warm_and_cold))


@pytest.mark.parametrize("name", LAYERS)
def test_from_a_denser_s(name):
    plans = [(LayerPlan("dense", (), d, kind), LayerPlan("dense", (), 1.4 * d, kind)) for kind in DENSER for d in (0.15, 0.3, 0.6)]
    assert mean_ratio(name, plans) <= WORSE


@pytest.mark.parametrize(("name", "form"), GRID)
def test_from_the_same_rank_and_a_denser_s(name, form):
    plans = [plan_of(spec_of(name), form, kind) for kind in DENSER]
    assert mean_ratio(name, [(p, LayerPlan(form, p.rank, 1.5 * p.density, p.pattern)) for p in plans]) <= WORSE


@pytest.mark.parametrize(("name", "form"), GRID)
def test_from_the_rank_below_and_the_same_s(name, form):
    ranks = [[plan_of(spec_of(name), form, kind, ratio) for ratio in (RATIO, RATIO / 2)] for kind in HIGHER]
    assert mean_ratio(name, ranks) <= WORSE
