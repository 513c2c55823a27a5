import itertools
from types import SimpleNamespace

import optuna
import pytest
from jobs import CONTROLS, Notes, interrupt, searching, states, stored
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

import lrsearch
from lrsearch.search.records import Record
from lrsearch.spec.cost import Cost
from lrsearch.spec.plan import Plan
from lrsearch.spec.score import Score
from lrsearch.study import loop as study_module
from lrsearch.study.study_folder import StudyFolder
from lrsearch.study.trials import TrialStore
from lrsearch.study.workers import Workers


def same(a, b):
    return a.drop(columns=["trial", "model"]).equals(b.drop(columns=["trial", "model"]))


@pytest.fixture
def store(tmp_path):
    """An empty study whose plans have one parameter."""
    proposals = SimpleNamespace(space={"x": FloatDistribution(0, 1)}, sampler=optuna.samplers.RandomSampler)
    return TrialStore(StudyFolder(tmp_path), ("divergence", "params"), proposals, Workers(tmp_path))


def finish(store, rungs, last):
    """Ask for a trial and store that it reached its rung."""
    trial = store.ask()
    number = trial.user_attrs.get("continues", trial.number)
    scores = tuple(Score(0.5, 1.0, 0.1, rung, False) for rung in range(rungs))
    record = Record(number, "search", Plan(), Cost(10), scores, rungs > last, "models/0000")
    store.finish(trial, record)
    return record


def test_a_further_rung_is_a_trial_that_continues_the_plans_first(store):
    first = finish(store, 1, last=1)
    assert (store.sent(), store.empty) == ({}, True)
    store.queue_rung(first, 1)
    assert (store.sent(), store.empty, store.queued()) == ({0: 1}, False, [])
    further = finish(store, 2, last=1)
    assert store.records() == [further]
    assert [t.state for t in store.study.get_trials()] == [TrialState.PRUNED, TrialState.COMPLETE]
    assert store.study.get_trials()[1].params == store.study.get_trials()[0].params


def test_a_rung_that_was_killed_is_due_again_and_one_that_failed_is_not(store, tmp_path):
    first = finish(store, 1, last=1)
    store.queue_rung(first, 1)
    store.ask()
    again = TrialStore(StudyFolder(tmp_path), store.objectives, store.proposals, Workers(tmp_path))
    assert (again.sent(), again.stuck(), again.empty, again.records()) == ({}, set(), True, [first])
    again.queue_rung(first, 1)
    again.fail(again.ask(), "why")
    assert (again.sent(), again.stuck()) == ({0: 1}, {0})


def test_a_finished_study_evaluates_nothing_again(job, calls):
    result = lrsearch.search(**job)
    assert calls
    calls.clear()
    again = lrsearch.search(**job)
    assert calls == []
    assert again.trials.equals(result.trials)


def test_trials_may_be_raised(job, result, calls):
    more = lrsearch.search(**searching(job, trials=5))
    assert 1 <= len(calls) <= 2
    assert more.trials[: len(result.trials)].drop(columns="on_front").equals(result.trials.drop(columns="on_front"))
    assert (more.trials.source == "search").sum() == 5


def test_a_study_without_time_stops_and_goes_on(job, calls):
    told = Notes()
    empty = lrsearch.search(**searching(job, timeout=1e-9), progress=told)
    assert [note for note in told.notes if "timeout" in note] == ["stopped by the timeout of 1e-09 s"]
    assert (calls, len(empty.trials), len(empty.front)) == ([], 0, 0)
    assert empty.comparison.empty
    empty.plot()
    told.notes.clear()
    assert len(lrsearch.search(**searching(job, timeout=600), progress=told).front)
    assert not [note for note in told.notes if "timeout" in note]


def test_an_interrupted_study_keeps_what_is_finished_and_runs_the_rest_once(job, calls, tmp_path):
    whole = lrsearch.search(**{**job, "out": tmp_path / "whole"})
    evaluations = len(calls)
    calls.clear()
    calls.fail = lambda count: interrupt() if count == 3 else None
    with pytest.raises(KeyboardInterrupt):
        lrsearch.search(**job)
    assert states(job["out"]).count("COMPLETE") >= 2
    assert (job["out"] / "front.csv").exists()
    resumed = lrsearch.search(**job)
    assert abs(len(calls) - 1 - evaluations) <= 1
    assert "RUNNING" not in states(job["out"])
    controls = [r.trials[r.trials.source != "search"].sort_values(["params", "source"]).reset_index(drop=True) for r in (whole, resumed)]
    assert same(*(c.drop(columns="on_front") for c in controls))
    assert (resumed.trials.source == "search").sum() == 3


def test_a_study_may_stop_right_after_the_dense_model(job, monkeypatch):
    clock = SimpleNamespace(monotonic=itertools.count().__next__)
    monkeypatch.setattr(study_module, "time", clock)
    result = lrsearch.search(**searching({**job, "budget": None}, timeout=1.5))
    assert list(result.trials.source) == list(result.front.source) == ["dense"]
    assert (job["out"] / "report.html").exists()


def test_a_trial_of_the_search_that_was_killed_is_run_again(job, result):
    study = stored(job["out"])
    space = study.get_trials()[-1].distributions
    study.sampler = optuna.samplers.RandomSampler(5)
    killed = study.ask(space)
    more = lrsearch.search(**searching(job, trials=4))
    trials = stored(job["out"]).get_trials()
    assert trials[killed.number].state == TrialState.FAIL
    assert [t.number for t in trials if t.params == killed.params and t.state == TrialState.COMPLETE] == [more.trials.trial.max()]
    assert (more.trials.source == "search").sum() == 4


def test_a_control_that_was_killed_before_it_had_its_parameters_is_run_again(job, calls, tmp_path):
    whole = lrsearch.search(**{**job, "out": tmp_path / "whole"})
    calls.fail = lambda _: interrupt()
    with pytest.raises(KeyboardInterrupt):
        lrsearch.search(**job)
    killed = stored(job["out"]).ask()
    assert killed.user_attrs["source"] in CONTROLS
    calls.fail = lambda _: None
    resumed = lrsearch.search(**job)
    assert sorted(resumed.trials.source) == sorted(whole.trials.source)
