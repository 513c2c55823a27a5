import threading
from functools import partial

import pytest
import torch

from lrsearch.train.layer_by_layer import LayerByLayer, PartedError


def walk(threads, said, meetings=2, last=lambda: None):
    """A task that says where it is before and after every meeting."""

    def task():
        for k in range(meetings):
            threads.meet(k, partial(said.append, (k, threads.index)), last)
        said.append((meetings, threads.index))

    return task


@pytest.mark.parametrize("tasks", [1, 2, 5])
def test_all_reach_a_meeting_in_order_before_any_leaves_it(tasks):
    threads, said = LayerByLayer(), []
    threads.run([walk(threads, said)] * tasks)
    assert said == [(k, i) for k in range(3) for i in range(tasks)]


def test_the_last_to_arrive_settles_each_meeting_once_before_any_goes_on():
    threads, said = LayerByLayer(), []
    threads.run([walk(threads, said, last=lambda: said.append("settled"))] * 3)
    assert said == [(0, 0), (0, 1), (0, 2), "settled", (1, 0), (1, 1), (1, 2), "settled", (2, 0), (2, 1), (2, 2)]


def test_the_callback_of_the_last_task_is_the_one_that_runs():
    threads, ran = LayerByLayer(), []
    threads.run([lambda: threads.meet(0, lambda: None, lambda: ran.append(threads.index))] * 4)
    assert ran == [3]


def test_tasks_that_never_meet_run_one_after_the_other():
    threads, said = LayerByLayer(), []
    threads.run([walk(threads, said, meetings=0)] * 3)
    assert said == [(0, 0), (0, 1), (0, 2)]


def test_nothing_to_run_is_no_obstacle():
    LayerByLayer().run([])


def test_only_one_runs_at_a_time():
    """No lock is needed between two meetings."""
    threads, inside, most = LayerByLayer(), [], []

    def task():
        for _ in range(20):
            inside.append(1)
            most.append(len(inside))
            inside.pop()
            threads.meet(0, lambda: None, lambda: None)

    threads.run([task] * 4)
    assert (len(most), set(most)) == (80, {1})


def test_tasks_run_without_gradients():
    weight, outputs = torch.ones(2, requires_grad=True), []
    LayerByLayer().run([lambda: outputs.append(weight * 2)] * 2)
    assert [y.requires_grad for y in outputs] == [False, False]
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def fail():
    raise ValueError("here")


@pytest.mark.parametrize("culprit", [0, 1, 2])
@pytest.mark.parametrize("after", [0, 1])
def test_an_exception_is_raised_and_the_others_are_given_up(culprit, after):
    """Those before the culprit wait for it at the meeting and never leave it; those behind never arrive."""
    threads, said = LayerByLayer(), []

    def task():
        for k in range(3):
            if (k, threads.index) == (after, culprit):
                fail()
            said.append((k, threads.index))
            threads.meet(0, lambda: None, lambda: None)

    with pytest.raises(ValueError, match="^here$"):
        threads.run([task] * 3)
    assert said == [(k, i) for k in range(after + 1) for i in range(3) if (k, i) < (after, culprit)]


def test_a_failing_settlement_is_raised_too():
    threads, said = LayerByLayer(), []
    with pytest.raises(ValueError, match="^here$"):
        threads.run([walk(threads, said, last=fail)] * 3)
    assert said == [(0, 0), (0, 1), (0, 2)]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interruption_of_a_task_is_raised_as_it_is(kind):
    def task():
        raise kind

    with pytest.raises(kind):
        LayerByLayer().run([task, lambda: None])


@pytest.mark.parametrize("culprit", [0, 1, 2])
@pytest.mark.parametrize(("usual", "other"), [("ab", "a"), ("ab", ""), ("a", "ab"), ("", "a"), ("ab", "ba"), ("ab", "b")])
def test_tasks_that_go_different_ways_are_given_up(culprit, usual, other):
    """No thread waits for one that never comes, or settles what it has nothing of."""
    threads, settled = LayerByLayer(), []

    def task():
        for place in other if threads.index == culprit else usual:
            threads.meet(place, lambda: None, lambda place=place: settled.append(place))

    before = set(threading.enumerate())
    with pytest.raises(PartedError):
        threads.run([task] * 3)
    assert set(threading.enumerate()) == before
    assert "".join(settled) in usual


@pytest.mark.parametrize("failing", [False, True])
def test_no_thread_is_left(failing):
    before, threads = set(threading.enumerate()), LayerByLayer()
    task = walk(threads, [], last=fail if failing else lambda: None)
    if failing:
        with pytest.raises(ValueError, match="here"):
            threads.run([task] * 3)
    else:
        threads.run([task] * 3)
    assert set(threading.enumerate()) == before
