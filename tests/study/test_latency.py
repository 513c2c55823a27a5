"""A study that knows how long its plans take."""

import itertools
import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from jobs import FINETUNED, Notes, corrected_untrained, searching, stored
from outputs import divergence
from torch import nn

import lrsearch
from lrsearch.errors import BudgetError, ConfigError, LatencyError
from lrsearch.latency import runner
from lrsearch.latency import survey as surveys
from lrsearch.latency.runner import Timing
from lrsearch.report.latency import prediction_figure
from lrsearch.spec.cost import Budget
from lrsearch.spec.front import non_dominated
from lrsearch.spec.plan import LayerPlan
from lrsearch.spec.space import Range, Rule, Space
from lrsearch.study import latency as latencies
from lrsearch.study import loop as study_module
from lrsearch.study.evaluator import Evaluator
from lrsearch.study.latency import largest_of_step
from lrsearch.study.workers import working

RANKS, DENSITIES = Range(min=0.1, max=0.5, steps=3), Range(min=0.1, max=0.8, steps=3)
SPACE = Space(rules=(Rule(families=("sparse", "low-rank"), rank_ratio=RANKS, density=DENSITIES),))


@pytest.fixture
def measurements(monkeypatch) -> list[int]:
    """Times without a clock: the whole dense model takes 10 ms, dense layers 2 ms, other forms 1 ms; how many were taken for each table."""
    taken = []

    def timed(runners, threads, advance, rounds=0):
        if 2.0 in runners:
            taken.append(len(runners))
        return [Timing(ms, ms, ms, ms, 1) for ms in runners]

    class Backend:
        def version(self):
            return "1.0"

        def build(self, module, sample, threads):
            parts = list(module.children())
            if len(parts) > 3:
                return 10.0 - sum(isinstance(c, nn.Sequential) for c in parts)
            layer = parts[1] if len(parts) == 3 else module  # a convolution stands between two others
            return 1.0 if list(layer.children()) else 2.0

    monkeypatch.setattr(surveys, "interleaved", timed)
    monkeypatch.setattr(surveys, "backend", lambda name: Backend())
    return taken


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("LRSEARCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "latency"


@pytest.fixture
def timed_job(job, cache, measurements):
    keys = {"latency": {"backend": "onnxruntime"}, "budget": Budget(latency_ms=8.0), "objectives": ("divergence", "latency_ms")}
    return {**job, **keys, "space": SPACE}


@pytest.fixture
def timed_result(timed_job, finish):
    """The finished study of ``timed_job``."""
    return finish("timed", timed_job)


@pytest.fixture
def untried(timed_job):
    """A job that measures its table and has no time for a plan."""
    return searching(timed_job, timeout=1e-9)


def test_every_plan_meets_a_budget_of_milliseconds(timed_result):
    result = timed_result
    assert (result.trials.latency_ms <= 8.0).all()
    assert result.dense.latency_ms == 10.0
    assert (result.trials.latency_ms_ratio == result.trials.latency_ms / 10).all()
    assert "latency, % of dense" in str(result.plot().layout)
    row = result.front.iloc[0]
    about = json.loads((result.folder / row.model / "plan.json").read_text())
    assert about["cost"]["latency_ms"] == row.latency_ms
    assert set(about["merged"]) == {n for n, p in about["plan"].items() if p["format"] == "dense"}


def test_whole_models_of_the_front_are_measured_once(timed_job, monkeypatch):
    built = []
    planned = surveys.Survey.planned
    monkeypatch.setattr(surveys.Survey, "planned", lambda self, plan, merged: built.append(plan) or planned(self, plan, merged))
    result = lrsearch.search(**timed_job)
    assert (result.front.measured_ms <= 8.0).all()
    assert (result.front.measured_ms_ratio == result.front.measured_ms / 10).all()
    assert [f.layout.title.text.partition(":")[0] for f in result.plot_latency()] == ["Latency by rank", "Latency of the front"]
    assert "Latency of the front" in (result.folder / "report.html").read_text()
    taken = len(built)
    again = lrsearch.search(**timed_job)
    assert len(built) == taken
    assert again.front.equals(result.front)


def test_a_front_is_not_measured_while_another_worker_is_busy(timed_job, timed_result):
    result = timed_result
    (result.folder / "latency_front.json").unlink()
    trial = stored(result.folder).ask()
    with working(result.folder) as other:
        trial.set_user_attr("worker", other.name)
        lrsearch.search(**searching(timed_job, timeout=1e-9))
        assert not (result.folder / "latency_front.json").exists()
    assert len(lrsearch.search(**timed_job).front) == len(result.front)
    assert (result.folder / "latency_front.json").exists()


def test_predictions_are_shown_as_shares_of_the_dense_model_beside_which_the_front_was_measured():
    front = pd.DataFrame({
        "trial": [3, 5], "latency_ms": [8.0, 6.0], "latency_ms_ratio": [0.8, 0.6], "measured_ms": [16.0, np.nan],
        "measured_ms_ratio": [0.8, np.nan],
    })  # fmt: skip
    figure = prediction_figure(front)
    assert figure.layout.title.text == "Latency of the front: mean absolute error 0.0% (n = 1)"
    assert (list(figure.data[1].x), list(figure.data[1].y)) == ([80.0], [80.0])


def test_a_ratio_is_of_the_dense_model(timed_job):
    result = lrsearch.search(**{**timed_job, "budget": Budget(latency_ratio=0.7)})
    assert (result.trials.latency_ms <= 7.0).all()


def test_a_budget_that_no_plan_meets_is_told_the_smallest(timed_job):
    with pytest.raises(BudgetError, match=r"budget\.latency_ms: .*got 0\.5\. The smallest possible is \d\.0000 \("):
        lrsearch.search(**{**timed_job, "budget": Budget(latency_ms=0.5)})


def test_a_ratio_that_no_plan_meets_is_told_as_a_ratio(timed_job):
    with pytest.raises(BudgetError, match=r"budget\.latency_ratio: .*got 0\.05\. The smallest possible is \d\.0000 \(0\.\d+ of dense"):
        lrsearch.search(**{**timed_job, "budget": Budget(latency_ratio=0.05)})
    with pytest.raises(BudgetError, match=r"budget\.latency_ms: .*got 0\.4\. "):
        lrsearch.search(**{**timed_job, "budget": Budget(latency_ratio=0.05, latency_ms=0.4)})


@pytest.mark.parametrize(("late", "stray"), [(0.1, 0.0), (0.0, 0.1), (0.1, 0.05)])
def test_a_search_keeps_as_far_from_the_limit_as_whole_models_may_be_late(timed_job, monkeypatch, late, stray):
    def slower(models, threads, stage, advance):
        return [Timing(ms if ms == 10.0 else ms * (1 + late), ms, ms, ms, 1) for ms in models]

    monkeypatch.setattr(latencies, "timed", slower)
    monkeypatch.setattr(latencies, "corrected", lambda survey, table, menus, progress: replace(table, stray=stray))
    result = lrsearch.search(**timed_job)
    assert json.loads((result.folder / "latency_late.json").read_text())["late"] == pytest.approx(late + stray)
    assert result.trials.latency_ms.max() <= 8.0 / (1 + late + stray)


@pytest.fixture
def slow_once_whole(monkeypatch):
    """Whole models of the front take 1.5 ms longer than their layers say, but for the smallest."""
    calls = []

    def late(models, threads, stage, advance):
        calls.append(whole := list(models))
        least = min(whole)
        return [Timing(ms if len(calls) == 1 or ms in (10.0, least) else ms + 1.5, ms, ms, ms, 1) for ms in whole]

    monkeypatch.setattr(latencies, "timed", late)


def test_what_is_over_the_budget_when_measured_whole_leaves_the_front(timed_job, slow_once_whole):
    result = lrsearch.search(**timed_job)
    found = json.loads((result.folder / "latency_front.json").read_text())
    refused = result.trials[result.trials.verified.fillna(True) == False]  # noqa: E712  may be NA
    assert len(refused)
    assert len(result.front)
    assert not set(refused.trial) & set(result.front.trial)
    assert result.front.verified.all()
    assert (result.front.measured_ms <= 8.0).all()
    assert (refused.measured_ms > 8.0).all()
    assert set(found) == {"sha256", *(str(t) for t in (*refused.trial, *result.front.trial))}
    assert list(pd.read_csv(result.folder / "front.csv").trial) == list(result.front.trial)
    late = {t.user_attrs["trial"]: list(t.constraints.values()) for t in result.study.trials if t.constraints}
    own = refused.set_index("trial").measured_ms
    assert late == {trial: [pytest.approx(own[trial] - 8.0)] for trial in late}
    assert late
    assert not late.keys() & {t.user_attrs["trial"] for t in result.study.best_trials}


@pytest.fixture
def first_front_is_slow(monkeypatch):
    """The whole models of the first front are as slow as the dense one, all others as fast as their layers say."""
    calls = []

    def timed(models, threads, stage, advance):
        calls.append(whole := list(models))
        return [Timing(10.0 if len(calls) == 2 else ms, ms, ms, ms, 1) for ms in whole]

    monkeypatch.setattr(latencies, "timed", timed)


def test_a_search_keeps_as_far_from_the_limit_as_the_best_plans_are_late(timed_job, monkeypatch):
    def timed(models, threads, stage, advance):
        return [Timing(ms if ms == 10.0 else 1.25 * ms, ms, ms, ms, 1) for ms in models]

    monkeypatch.setattr(latencies, "timed", timed)
    result = lrsearch.search(**timed_job)
    assert (result.trials.latency_ms <= 8.0 / 1.25).all()
    assert result.trials.verified.fillna(True).all()
    assert (result.front.measured_ms <= 8.0).all()
    monkeypatch.setattr(latencies.Timed, "_late", None)  # a study that goes on does not measure it again
    assert lrsearch.search(**timed_job).front.equals(result.front)


ONE_RUNG = {
    **FINETUNED, "proxy": {"finetune": {"steps": 4, "rungs": 1, "batch": 25}},
    "budget": Budget(latency_ms=9.5, params=0.7), "objectives": ("divergence", "params"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, ONE_RUNG, FINETUNED], ids=["fitted", "finetuned", "none left at the last rung"])
def test_what_the_front_dominated_takes_the_place_of_what_is_over_the_budget(timed_job, first_front_is_slow, settings):
    job = {**timed_job, **settings}
    result, cost = lrsearch.search(**job), job["objectives"][1]
    refused = result.trials[result.trials.verified.eq(False).fillna(False)]
    left = result.trials[result.trials.complete & ~result.trials.model.isin(refused.model)]
    assert len(refused)
    assert len(result.front)
    best = left[non_dominated(left[["divergence", cost]])].sort_values(cost, ascending=False)
    assert list(result.front.trial) == list(best.trial)
    assert result.front.verified.all()
    assert {f"models/{path.name}" for path in (result.folder / "models").iterdir()} == set(result.front.model)
    x, _ = job["score"]
    dense = job["model"].eval()
    for i, row in result.front.iterrows():
        assert divergence(result.load(i)(x), dense(x)).mean().item() == pytest.approx(row.divergence, abs=1e-5)
    assert lrsearch.search(**job).front.equals(result.front)


def test_a_timeout_is_told_once_however_often_the_front_is_measured(timed_job, first_front_is_slow, monkeypatch):
    monkeypatch.setattr(study_module, "time", SimpleNamespace(monotonic=itertools.count().__next__))
    told = Notes()
    result = lrsearch.search(**searching(timed_job, timeout=4.5), progress=told)
    assert result.trials.verified.eq(False).any()
    assert [note for note in told.notes if "timeout" in note] == ["stopped by the timeout of 4.5 s"]


def test_a_finetune_that_is_done_again_is_told_what_the_first_was(timed_job, first_front_is_slow, told):
    result = lrsearch.search(**{**timed_job, **ONE_RUNG})
    assert told == corrected_untrained(result.folder, told)
    assert any(told[t] for t in result.front.trial)


def test_the_dense_model_is_as_fast_as_itself(timed_job, measurements):
    result = lrsearch.search(**{**timed_job, "budget": Budget(latency_ratio=1.0)})
    found = json.loads((result.folder / "latency_front.json").read_text())
    (dense,) = result.trials[result.trials.source == "dense"].trial
    assert found[str(dense)] == {"ms": 10.0, "dense_ms": 10.0, "verified": True}


def test_the_study_goes_on_with_the_table_it_began_with(timed_job, cache, measurements):
    first = lrsearch.search(**timed_job)
    (cached,) = cache.glob("*.json")
    cached.unlink()
    again = lrsearch.search(**timed_job)
    assert len(measurements) == 1
    assert again.trials.equals(first.trials)
    assert (first.folder / "latency.json").exists()


def test_another_study_of_the_same_model_measures_nothing(untried, measurements, tmp_path):
    lrsearch.search(**untried)
    lrsearch.search(**{**untried, "out": tmp_path / "other"})
    assert len(measurements) == 1


def test_a_damaged_cache_is_measured_again(untried, cache, measurements, tmp_path):
    lrsearch.search(**untried)
    next(cache.glob("*.json")).write_text("{")
    lrsearch.search(**{**untried, "out": tmp_path / "other"})
    assert len(measurements) == 2


def test_a_table_that_whole_models_stray_from_is_told_and_not_kept_for_others(untried, cache, measurements, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(latencies, "corrected", lambda survey, table, menus, progress: replace(table, stray=0.5))
    lrsearch.search(**untried)
    assert "note: whole models stray by 50% from what their layers say (load " in capsys.readouterr().out
    assert not list(cache.glob("*.json"))
    lrsearch.search(**{**untried, "out": tmp_path / "other"})
    assert len(measurements) == 2


def test_a_table_of_another_machine_must_be_asked_for_by_name(timed_job, untried, measurements, tmp_path):
    table = lrsearch.search(**untried).folder / "latency.json"
    data = json.loads(table.read_text())
    data["conditions"].update(cpu="Phone", version="9.9")
    del data["sha256"]
    table = tmp_path / "phone.json"
    table.write_text(json.dumps(data))
    job = {**timed_job, "out": tmp_path / "other"}
    with pytest.raises(LatencyError, match=rf"phone\.json: .*by name; got Phone, not {re.escape(runner.cpu())}"):
        lrsearch.search(**{**job, "latency": {"table": table}})
    assert len(lrsearch.search(**{**job, "latency": {"table": table, "cpu": "Phone"}}).front)
    assert len(measurements) == 1


@pytest.mark.parametrize(
    "change",
    [{"budget": Budget(latency_ms=3.0)}, {"budget": Budget(latency_ratio=0.5)}, {"objectives": ("divergence", "latency_ms")},
     {"space": Space(rules=(Rule(rank_multiple="auto"),))}],
    ids=["milliseconds", "ratio", "objective", "auto"],
)  # fmt: skip
def test_latency_must_be_measured_where_it_counts(job, change):
    with pytest.raises(ConfigError, match=r"needs latency, such as latency: \{backend: onnxruntime\}"):
        lrsearch.search(**{**job, **change})


def test_without_latency_nothing_of_it_is_shown(job):
    result = lrsearch.search(**{**job, "search": {"trials": 1, "control_points": 1}})
    assert not [c for c in result.trials if "latency" in c]
    assert not (result.folder / "latency.json").exists()


def test_the_largest_rank_of_a_step_stays():
    ranks = {4: 1.0, 12: 1.5, 16: 1.002, 20: 1.8, 32: 1.81}
    menu = [LayerPlan(), LayerPlan(density=0.5), *(LayerPlan("svd", (r,), d) for d in (0.0, 0.1) for r in ranks)]
    ms = {p: ranks[p.rank[0]] if p.rank and not p.density else 2.0 for p in menu}
    kept = largest_of_step(menu, ms)
    assert [p.rank[0] for p in kept if p.rank and not p.density] == [16, 32]
    assert [p for p in kept if p.density] == [p for p in menu if p.density]  # they save values, not time


def test_ranks_of_several_modes_are_larger_only_where_none_is_smaller():
    menu = [LayerPlan("tucker2", r, 0.0) for r in ((4, 8), (8, 4), (8, 8))]
    assert largest_of_step(menu, dict(zip(menu, (1.0, 0.5, 1.0), strict=True))) == menu[1:]


def test_finetunes_that_take_such_places_go_on_from_their_pauses(timed_job, first_front_is_slow, monkeypatch):
    began, trained = [], Evaluator.trained

    def spied(self, training, until, place, corrected):
        began.append((place.partition(", ")[2], training.steps))
        return trained(self, training, until, place, corrected)

    monkeypatch.setattr(Evaluator, "trained", spied)
    result = lrsearch.search(**{**timed_job, **FINETUNED})
    assert result.trials.verified.eq(False).any()
    assert set(began) == {("rung 1", 0), ("rung 2", 2)}
    assert not list((result.folder / "paused").iterdir())


def test_another_machine_has_the_table_from_the_store(timed_job, measurements, monkeypatch, tmp_path):
    job = {**timed_job, "artifacts": str(tmp_path / "shared")}
    first = lrsearch.search(**{**job, "out": tmp_path / "a"})
    tables = len(measurements)
    assert tables
    here = runner.cpu()
    for module in (runner, latencies):
        monkeypatch.setattr(module, "cpu", lambda: "another processor")
    monkeypatch.setenv("LRSEARCH_CACHE", str(tmp_path / "other"))
    second = lrsearch.search(**{**job, "out": tmp_path / "b"})
    assert len(measurements) == tables
    assert second.latency == first.latency
    assert second.latency.conditions.cpu == here
    assert (tmp_path / "b" / "latency_late.json").read_bytes() == (tmp_path / "a" / "latency_late.json").read_bytes()
    assert (tmp_path / "b" / "latency_front.json").read_bytes() == (tmp_path / "a" / "latency_front.json").read_bytes()
