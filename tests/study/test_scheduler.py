from types import SimpleNamespace

import pytest

from lrsearch.search.records import Record
from lrsearch.spec.cost import Cost
from lrsearch.spec.plan import Plan
from lrsearch.spec.score import Score
from lrsearch.study.scheduler import Scheduler
from lrsearch.study.study_folder import StudyFolder


def record(number, source="search"):
    return Record(number, source, Plan(), Cost(10), (Score(0.5, 1.0, 0.1, 0, False),), False, "models/0000")


@pytest.fixture
def scheduler(tmp_path):
    """Of three plans of the search one is finished; ``asked`` has what the halving was asked, ``log`` what the store was told."""
    log, asked = [], []
    store = SimpleNamespace(
        objectives=("divergence", "params"), empty=True, lost=False, log=log,
        records=lambda: [record(0), record(1, "uniform")], running=list, under_way=set, queued=list, sent=dict,
        give_up=lambda: store.lost, queue_controls=lambda: log.append("controls"),
        queue_rung=lambda r, rung: log.append((r.number, rung)), ask=lambda: log.append("ask") or "trial",
    )
    halving = SimpleNamespace(next=None, asked=asked, due=lambda records, sent, final: asked.append(final) or halving.next)
    return Scheduler(StudyFolder(tmp_path), store, halving, 3)


def test_what_is_queued_comes_first(scheduler):
    scheduler.trials.empty, scheduler.halving.next = False, (record(0), 1)
    assert (scheduler.ask(), scheduler.trials.log) == ("trial", ["ask"])


def test_a_rung_that_is_due_comes_before_a_new_plan(scheduler):
    scheduler.halving.next = (record(0), 1)
    assert (scheduler.ask(), scheduler.trials.log) == ("trial", [(0, 1), "ask"])


def test_a_killed_workers_controls_are_queued_again(scheduler):
    scheduler.trials.lost = True
    assert (scheduler.ask(), scheduler.trials.log) == ("trial", ["controls", "ask"])


@pytest.mark.parametrize(("queued", "running", "left"), [
    ([], [], 2), (["search"], [], 2), ([], ["search"], 1), (["search"], ["search"], 1), (["uniform"], ["uniform"], 3),
    ([], ["search"] * 3, 0),
])  # fmt: skip
def test_plans_under_way_are_not_left(scheduler, queued, running, left):
    scheduler.trials.queued, scheduler.trials.running = lambda: queued, lambda: running
    assert scheduler.left() == left


@pytest.mark.parametrize(("running", "final"), [([], True), (["search"], False), (["uniform"], False)])
def test_shares_are_rounded_up_once_no_plan_is_still_to_come(scheduler, running, final):
    scheduler.trials.running = lambda: running
    finished = Scheduler(scheduler.folder, scheduler.trials, scheduler.halving, 1)
    assert finished.ask() is None
    assert scheduler.halving.asked == [final]


MORE = {"empty": False, "under_way": lambda: {0}, "records": list}


@pytest.mark.parametrize("more", [*MORE, "due"])
def test_a_study_is_done_when_there_is_nothing_more(scheduler, more):
    finished = Scheduler(scheduler.folder, scheduler.trials, scheduler.halving, 1)
    assert finished.done
    if more == "due":
        scheduler.halving.next = (record(0), 1)
    else:
        setattr(scheduler.trials, more, MORE[more])
    assert not finished.done
