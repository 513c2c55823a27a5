"""Six trials by hand: costs in percent of a dense model of 1,000 values, 10,000 MACs and 4,000 bytes."""

from datetime import datetime, timedelta
from pathlib import Path

import pytest

from lrsearch.report.choices import choices
from lrsearch.report.frame import comparison, front_frame, rungs_frame, trials_frame
from lrsearch.report.page_data import PageData
from lrsearch.report.summary import choice_table, notes
from lrsearch.search.records import Record
from lrsearch.spec.cost import Cost
from lrsearch.spec.plan import LayerPlan, Plan
from lrsearch.spec.score import Chance, Score

OBJECTIVES = ("divergence", "params")
CHANCE = Chance(divergence=0.9, metric=0.5)
PLAN = Plan({"a": LayerPlan(density=0.2), "b": LayerPlan("svd", (3,), 0.0), "c": LayerPlan("svd", (2,), 0.1), "d": LayerPlan(density=0.4)})


def record(number, source, percent, kl, metric, steps=(0,), complete=True, model=None):
    cost = Cost(10 * percent, 100 * percent, 50 * percent, 40 * percent)
    scores = tuple(Score(metric - 0.1 * (s < steps[-1]), kl * (1 + (s < steps[-1])), 0.01, s, s > 0) for s in steps)
    return Record(number, source, PLAN, cost, scores, complete, model or f"models/{number:04d}")


@pytest.fixture
def dense() -> Cost:
    return Cost(1000, 10000, 10000, 4000)


@pytest.fixture
def baseline() -> Score:
    return Score(0.9, 0.0, 0.0, 0, False)


@pytest.fixture
def records() -> list[Record]:
    return [
        record(0, "dense", 100, 0.0, 0.9),
        record(1, "uniform", 50, 0.4, 0.7),
        record(3, "knapsack", 50, 0.1, 0.8, steps=(0, 5)),
        record(4, "search", 40, 0.1, 0.85, steps=(0, 5)),
        record(5, "search", 20, 1.0, 0.5, steps=(0, 5)),
        record(6, "search", 10, 0.001, 0.9, complete=False),
    ]


@pytest.fixture
def trials(records, dense, baseline):
    return trials_frame(records, dense, baseline, OBJECTIVES, (), CHANCE)


@pytest.fixture
def data(trials, records, dense, baseline):
    front = front_frame(trials, OBJECTIVES, Path())
    found = choices(front, OBJECTIVES, baseline)
    return PageData(
        [("model", "</script><script>alert(1)</script>")], trials, front, records, dense, OBJECTIVES, {"params": 500.0},
        choice_table(found, dense, baseline, OBJECTIVES), notes(found, len(front)), comparison(records, dense, OBJECTIVES),
        rungs_frame(records), "4", finished={r.number: datetime(2026, 1, 1) + timedelta(minutes=r.number) for r in records},
    )
