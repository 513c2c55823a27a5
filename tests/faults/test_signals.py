"""Signals at random moments of a study; the next run ends whole, with all that was finished."""

import os
import signal
import time
from contextlib import suppress

import pytest
from faulty_study import ended

pytestmark = pytest.mark.faults


def send(process, sent):
    """To a process and its children; it may have ended already."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, sent)


@pytest.mark.parametrize("round_", range(3))
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name)
def test_a_signal_at_any_moment_loses_nothing(study, finished, rng, sent, round_):
    *_, front, seconds = finished
    process = study.begin()
    time.sleep(rng.uniform(0.2, 1.0) * seconds)
    send(process, sent)
    code, said = ended(process)
    assert code in (0, -sent, 128 + sent), said
    if code == 128 + sent:
        assert "what is finished is kept" in said
    again = study.whole_after(study.finished())
    assert again.equals(front)


def test_a_process_that_is_stopped_and_goes_on_ends_as_ever(study, finished, rng):
    _, front, seconds = finished
    process = study.begin()
    for _ in range(3):
        time.sleep(rng.uniform(0.1, 0.3) * seconds)
        send(process, signal.SIGSTOP)
        time.sleep(0.5)
        send(process, signal.SIGCONT)
    code, said = ended(process)
    assert code == 0, said
    assert study.whole_after(study.finished()).equals(front)


def test_killed_while_another_works_beside_it(study, finished, rng):
    *_, seconds = finished
    first = study.begin()
    time.sleep(0.3 * seconds)
    second = study.begin()
    time.sleep(rng.uniform(0.2, 0.8) * seconds)
    send(first, signal.SIGKILL)
    ended(first)
    code, said = ended(second)
    assert code == 0, said
    study.whole_after(study.finished())
