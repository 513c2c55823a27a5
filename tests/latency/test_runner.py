import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from lrsearch.latency import runner
from lrsearch.latency.remote import ingest, pack
from lrsearch.latency.runner import CALLS, MOST_ROUNDS, ROUNDS, clock, interleaved


class Time:
    """Stands for the module: time that passes only in the runners, and on the wall a thousand times as fast."""

    def __init__(self) -> None:
        self.now, self.resolution = 0, 1e-9

    def get_clock_info(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(resolution={"process_time": self.resolution}[name])

    def process_time_ns(self) -> int:
        return self.now

    def perf_counter_ns(self) -> int:
        return 1_000 * self.now


@pytest.fixture
def time(monkeypatch) -> Time:
    monkeypatch.setattr(runner, "time", Time())
    return runner.time


def taking(time, durations):
    """A runner that takes the durations (ns) in turn, then the last for ever."""
    left = list(durations)

    def run():
        time.now += left.pop(0) if len(left) > 1 else left[0]

    return run


def test_the_lower_quartile_is_told_with_other_percentiles_of_all_calls(time):
    (timing,) = interleaved([[taking(time, [9_000, *[3_000, 1_000, 1_000, 1_000] * 200])]], 1)
    assert (timing.ms, timing.p90) == (0.001, 0.003)
    assert timing.calls == ROUNDS * CALLS


def test_one_lucky_call_counts_for_nothing(time):
    (timing,) = interleaved([[taking(time, [3_000, 1_000, 3_000])]], 1)
    assert (timing.ms, timing.p10) == (0.003, 0.003)


def test_models_are_timed_in_turn_in_rounds(time):
    seen = []

    def noting(name):
        def run():
            seen.append(name)
            time.now += 1_000
        return run

    steps = []
    interleaved([[noting("a")], [noting("b")]], 1, lambda: steps.append(1))
    visit = CALLS + 1
    assert seen[: 3 * visit] == ["b"] * visit + ["a"] * 2 * visit  # the next round goes the other way
    assert seen.count("a") == seen.count("b") == ROUNDS * visit
    assert len(steps) == ROUNDS


def test_only_what_is_not_confirmed_is_measured_again(time):
    steady = taking(time, [1_000])
    falling = taking(time, [100_000 - 200 * i for i in range(10_000)])
    timings = interleaved([[steady], [falling]], 1)
    assert timings[0].calls == ROUNDS * CALLS
    assert timings[1].calls == MOST_ROUNDS * CALLS


def test_of_several_sessions_the_fast_one_counts(time):
    (timing,) = interleaved([[taking(time, [3_000]), taking(time, [1_000]), taking(time, [2_000])]], 1)
    assert (timing.ms, timing.median, timing.p90) == (0.001, 0.002, 0.003)


def test_slow_models_are_called_less_often(time):
    (timing,) = interleaved([[taking(time, [5_000_000])]], 1)
    assert timing.calls == ROUNDS


def test_one_thread_is_timed_by_the_processor_and_several_by_the_wall(time):
    assert interleaved([[taking(time, [1_000])]], 1)[0].ms == 0.001
    assert interleaved([[taking(time, [1_000])]], 2)[0].ms == 1.0


def test_a_coarse_clock_of_the_processor_is_not_used(time):
    time.resolution = 0.015
    assert clock(1) == time.perf_counter_ns


def test_the_runner_needs_nothing_of_this_package(survey, tmp_path):
    pack(survey, tmp_path, 1, lambda: None)
    done = subprocess.run([sys.executable, "-I", "runner.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    times = json.loads((tmp_path / "times.json").read_text())
    assert len(times["times"]) == len(survey.jobs) + 1
    assert times["cpu"] == runner.cpu()
    assert f"{len(survey.jobs) + 1} models" in done.stdout
    table = ingest(survey, tmp_path, 1)
    assert survey.covers(table, table.conditions)
