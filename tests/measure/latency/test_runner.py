import json
import subprocess
import sys

import pytest

from lrsearch.measure.latency import runner
from lrsearch.measure.latency.elsewhere import ingest, pack
from lrsearch.measure.latency.runner import CALLS, MOST_ROUNDS, ROUNDS, interleaved


class Clock:
    """Time that passes only in the runners."""

    def __init__(self) -> None:
        self.now = 0

    def perf_counter_ns(self) -> int:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(runner, "time", clock)
    return clock


def taking(clock, durations):
    """A runner that takes the durations (ns) in turn, then the last for ever."""
    left = list(durations)

    def run():
        clock.now += left.pop(0) if len(left) > 1 else left[0]

    return run


def test_the_least_is_told_with_percentiles_of_all_calls(clock):
    (timing,) = interleaved([taking(clock, [9_000, *[3_000, 1_000] * 200])])
    assert (timing.ms, timing.p90) == (0.001, 0.003)
    assert timing.ms <= timing.p10 <= timing.median <= timing.p90
    assert timing.calls == ROUNDS * CALLS


def test_models_are_timed_in_turn_in_rounds(clock):
    seen = []

    def noting(name):
        def run():
            seen.append(name)
            clock.now += 1_000
        return run

    steps = []
    interleaved([noting("a"), noting("b")], lambda: steps.append(1))
    visit = CALLS + 1
    assert seen[: 3 * visit] == ["b"] * visit + ["a"] * 2 * visit  # the next round goes the other way
    assert seen.count("a") == seen.count("b") == ROUNDS * visit
    assert len(steps) == ROUNDS


def test_only_what_is_not_confirmed_is_measured_again(clock):
    steady = taking(clock, [1_000])
    falling = taking(clock, [100_000 - 200 * i for i in range(10_000)])
    timings = interleaved([steady, falling])
    assert timings[0].calls == ROUNDS * CALLS
    assert timings[1].calls == MOST_ROUNDS * CALLS


def test_slow_models_are_called_less_often(clock):
    (timing,) = interleaved([taking(clock, [5_000_000])])
    assert timing.calls == ROUNDS


def test_the_runner_needs_nothing_of_this_package(survey, tmp_path):
    pack(survey, tmp_path, 1, lambda: None)
    done = subprocess.run([sys.executable, "-I", "runner.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    times = json.loads((tmp_path / "times.json").read_text())
    assert len(times["times"]) == len(survey.jobs) + 1
    assert times["cpu"] == runner.cpu()
    assert f"{len(survey.jobs) + 1} models" in done.stdout
    table = ingest(survey, tmp_path, 1)
    assert survey.covers(table, table.conditions)
