"""The time that a search still takes, told while it runs."""

from types import SimpleNamespace

import pytest

from lrsearch.search.records import Record
from lrsearch.spec.cost import Cost
from lrsearch.spec.plan import Plan
from lrsearch.spec.score import Chance, Score
from lrsearch.study.pace import Pace
from lrsearch.study.status import describe


def record(number, rung=0, twin=None, metric=0.9, params=50, divergence=0.1):
    scores = tuple(Score(metric, divergence, 0.01, r, False) for r in range(rung + 1))
    return Record(number, "search", Plan({}), Cost(params, 1, 1, 1), scores, rung == 1, "models/0000", twin)


def left(share, elapsed):
    return elapsed * (1 - share) / share


def test_finetunes_to_come_are_counted_before_the_first_of_them():
    pace, scored = Pace.of(2, (48,), 32, 768), [record(n) for n in range(10)]
    assert pace.share(scored, 10, 5.0) == 0  # nothing was timed
    for each in scored:
        pace.note(each, 1.0)
    assert pace.heavier == [1 + 4 * 48 * 32 / 768]
    assert left(pace.share(scored, 10, 10.0), 10.0) == pytest.approx(10 + 10 * 9)  # of 20 plans at least half are finetuned


def test_what_was_seen_counts_and_what_was_known_before_does_not():
    pace, records = Pace.of(2, (48,), 32, 768), [record(n, rung=1) for n in range(6)] + [record(n) for n in range(6, 8)]
    for seconds, each in ((1.0, record(0)), (3.0, records[0]), (3.0, records[1]), (99.0, records[2]), (0.0, record(9, twin=0))):
        pace.note(each, seconds)
    assert left(pace.share(records, 2, 20.0), 20.0) == pytest.approx(2 * 1 + (10 * 6 / 8 - 6) * 3)
    assert pace.share([], 2, 20.0) == 0


def test_rungs_begin_where_the_one_before_ended():
    assert Pace.of(2, (10, 20, 40), 8, 320).heavier == [2, 2, 3]
    assert Pace.of(2, (), 8, 320).heavier == []


DENSE, BASELINE = {"params": 100}, Score(0.95, 0, 0, 0, False)


@pytest.mark.parametrize(("members", "told"), [
    ([(0.94, 60), (0.935, 30), (0.5, 5)], "front of 3; smallest within 2 points: params 30.0%, KL 0.100, -1.5 points"),
    ([(0.90, 60), (0.80, 30)], "front of 2; best: params 60.0%, KL 0.100, -5.0 points"),
    ([(0.11, 60), (0.10, 30)], "front of 2, none better than chance yet"),
    ([(None, 60), (None, 30)], "front of 2; smallest: params 30.0%, KL 0.200"),
])  # fmt: skip
def test_the_best_so_far_is_a_model_that_one_would_use(monkeypatch, members, told):
    front = [record(n, 1, None, metric, params, 0.1 if metric or not n else 0.2) for n, (metric, params) in enumerate(members)]
    monkeypatch.setattr("lrsearch.study.status.front", lambda *_: front)
    monkeypatch.setattr("lrsearch.study.status.reached", lambda _: [2, 1])
    baseline = BASELINE if members[0][0] else SimpleNamespace(metric=None)
    assert describe(front, ("divergence", "params"), DENSE, 1, baseline, Chance(2.0, 0.12), "nats") == f"2 plans, 1 finetuned, {told}"
    several = describe(front, ("divergence", "params"), DENSE, 2, baseline, Chance(2.0, 0.12), "nats")
    assert several == f"2 plans, 1 finetuned, 0 of them to the last rung, {told}"
