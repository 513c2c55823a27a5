"""Trials that end in an error, that kill their worker, or that do not fit into memory."""

import subprocess
import sys

import optuna
import pytest
import torch
from jobs import FINETUNED, Notes, interrupt, searching, states, stored
from optuna.trial import TrialState

import lrsearch
from lrsearch.errors import DataError, ScoreError
from lrsearch.spec.plan import Plan
from lrsearch.study.evaluator import Evaluator


def failed(folder):
    return [t for t in stored(folder).get_trials() if t.state == TrialState.FAIL]


def named(fits):
    """The plan that ``fits`` are of, in words."""
    return tuple((name, str(fit.plan)) for name, fit in sorted(fits.items()))


@pytest.fixture
def poison(monkeypatch):
    """Lets every score of one plan, the one scored ``nth`` at first, end in ``error``; ``tries`` counts them."""
    class Poison:
        nth, error, plan, seen, tries = 3, ZeroDivisionError("boom"), None, 0, 0

    score = Evaluator.score

    def poisoned(self, fits, place):
        Poison.seen += 1
        if Poison.seen == Poison.nth:
            Poison.plan = named(fits)
        if Poison.plan == named(fits):
            Poison.tries += 1
            raise Poison.error
        return score(self, fits, place)

    monkeypatch.setattr(Evaluator, "score", poisoned)
    return Poison


@pytest.mark.parametrize("nth", ["low-rank-only", "last"])
def test_a_plan_that_ends_in_an_error_is_tried_three_times_and_the_search_goes_on(job, poison, nth):
    poison.nth = 9 if nth == "last" else 3  # the third control, whose plan is no other control's
    notes = Notes()
    result = lrsearch.search(**searching(job, sampler="random", trials=6), progress=notes)
    trials = failed(job["out"])
    assert poison.tries == 3
    assert [t.user_attrs["raised"] for t in trials] == [1, 2, 3]
    assert [t.user_attrs.get("retried", False) for t in trials] == [True, True, False]
    assert all("ZeroDivisionError: boom" in t.user_attrs["reason"] for t in trials)
    assert len({t.user_attrs.get("source", "search") for t in trials}) == 1
    assert (trials[0].user_attrs.get("source") is None) == (nth == "last")
    plans = [Plan.from_dict(t.user_attrs["plan"]) for t in trials]
    assert [tuple((n, str(p)) for n, p in plan.layers.items()) for plan in plans] == [poison.plan] * 3
    assert (result.trials.source == "search").sum() == 6
    told = [note for note in notes.notes if "boom" in note]
    assert [note.endswith("Its plan is tried again.") for note in told] == [True, True, False]
    lrsearch.search(**searching(job, sampler="random", trials=6))
    assert poison.tries == 3


def test_a_score_that_is_no_number_is_not_tried_again(job, poison):
    poison.error = ScoreError("outputs must be finite", value="NaN", place="here", remedy="Mend it.")
    lrsearch.search(**job)
    assert poison.tries == 1


def test_a_model_that_raises_on_its_third_call_loses_nothing(job, calls):
    made = []

    def third(*_):
        if calls:
            made.append(1)
            if len(made) == 3:
                raise RuntimeError("a hiccup")

    job["model"].register_forward_pre_hook(third)
    result = lrsearch.search(**job)
    (trial,) = failed(job["out"])
    assert "a hiccup" in trial.user_attrs["reason"]
    assert trial.user_attrs["retried"]
    source = trial.user_attrs.get("source")
    same = [t for t in stored(job["out"]).get_trials() if (t.params, t.user_attrs.get("source")) == (trial.params, source)]
    assert [t.state for t in same] == [TrialState.FAIL, TrialState.COMPLETE]
    assert (result.trials.source == "search").sum() == 3


def test_a_metric_that_raises_fails_its_trial_alone(job, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "thirdmetric.py").write_text(
        "calls = []\ndef metric(outputs, labels):\n    calls.append(1)\n    return {}['x'] if len(calls) == 3 else 0.5\n"
    )
    result = lrsearch.search(**job, proxy={"metric": "thirdmetric:metric"})
    (trial,) = failed(job["out"])
    assert "KeyError: 'x'" in trial.user_attrs["reason"]
    assert Plan.from_dict(trial.user_attrs["plan"]).layers
    assert (result.trials.source == "search").sum() == 3


def test_five_plans_in_a_row_that_end_in_errors_end_the_study_and_the_last_is_shown(job, calls):
    calls.fail = lambda _: 1 // 0
    notes = Notes()
    with pytest.raises(ScoreError, match=r"trial \d+: a trial must not end in an error; got ZeroDivisionError") as caught:
        lrsearch.search(**job, progress=notes)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    final = [t for t in failed(job["out"]) if not t.user_attrs.get("retried")]
    assert len(final) == 5
    last = Plan.from_dict(final[-1].user_attrs["plan"])
    assert notes.notes[-1] == f"trial {final[-1].number} was to be " + "; ".join(f"{n} {p}" for n, p in last.layers.items())


def test_a_further_rung_that_ends_in_errors_is_tried_three_times(job, monkeypatch):
    trained, tries = Evaluator.trained, []

    def fails(self, training, until, place, corrected):
        tries.append(place)
        if place == tries[0]:
            raise ZeroDivisionError("boom")
        return trained(self, training, until, place, corrected)

    monkeypatch.setattr(Evaluator, "trained", fails)
    result = lrsearch.search(**{**job, **FINETUNED})
    assert tries.count(tries[0]) == 3
    assert [t.user_attrs["raised"] for t in failed(job["out"])] == [1, 2, 3]
    assert {t.user_attrs["continues"] for t in failed(job["out"])} == {int(tries[0].split()[1].rstrip(","))}
    assert len(result.front)
    lrsearch.search(**{**job, **FINETUNED})
    assert tries.count(tries[0]) == 3


def test_an_interrupted_plan_is_tried_however_often(job, calls):
    def stop(_):
        interrupt()

    for _ in range(4):
        calls.fail = stop
        with pytest.raises(KeyboardInterrupt):
            lrsearch.search(**job)
    calls.fail = lambda _: None
    lrsearch.search(**job)
    assert len(failed(job["out"])) == 4
    assert not [t for t in failed(job["out"]) if "reason" in t.user_attrs]


def test_a_full_disk_is_not_the_plans_doing(job, calls):
    def full(count):
        raise OSError(28, "No space left on device")

    for _ in range(4):
        calls.fail = full
        with pytest.raises(OSError, match="No space left"):
            lrsearch.search(**job)
    calls.fail = lambda _: None
    assert (lrsearch.search(**job).trials.source == "search").sum() == 3
    assert not [t for t in failed(job["out"]) if "reason" in t.user_attrs]


def test_what_three_workers_died_of_is_not_tried_again(job, result):
    """A worker that is gone has no lock; its trials are RUNNING."""
    folder = job["out"]
    study = stored(folder)
    first = study.get_trials()[-1]
    study.sampler = optuna.samplers.RandomSampler(5)
    trial = study.ask(first.distributions)
    for died in range(1, 4):
        trial.set_user_attr("worker", "gone")
        if died == 3:
            break
        lrsearch.search(**searching(job, timeout=1e-9))
        trial = study.ask(first.distributions)
        assert trial.user_attrs["died"] == died
    more = lrsearch.search(**searching(job, trials=4))
    reasons = [t.user_attrs.get("reason") for t in failed(folder)]
    assert reasons == [None, None, "its worker died 3 times"]
    assert trial.params not in [t.params for t in stored(folder).get_trials() if t.state == TrialState.COMPLETE]
    assert (more.trials.source == "search").sum() == 4


KILLER = """
import os, pathlib, sys
import torch
from torch import nn
import lrsearch
from lrsearch.study.evaluator import Evaluator

folder, stop = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[1] + ".poison")
score, count = Evaluator.score, []

def deadly(self, fits, place):
    count.append(place)
    name = repr(sorted((n, str(f.plan)) for n, f in fits.items()))
    if len(count) == 2 and not stop.exists():
        stop.write_text(name)
    if stop.exists() and stop.read_text() == name:
        os._exit(9)
    return score(self, fits, place)

Evaluator.score = deadly
torch.manual_seed(0)
torch.set_num_threads(1)
x = torch.randn(60, 12)
model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
y = model(x).argmax(1)
for _ in range(5):
    child = os.fork()
    if not child:
        try:
            lrsearch.search(
                model, calibration=(x[:30], y[:30]), score=(x[30:], y[30:]), budget=lrsearch.Budget(params=0.7), out=folder,
                search={"trials": 2, "control_points": 1, "sampler": "random"},
            )
            os._exit(0)
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(code, flush=True)
    if code != 9:
        break
"""


@pytest.mark.slow
def test_a_trial_that_kills_its_process_thrice_is_passed_over(tmp_path):
    run = subprocess.run([sys.executable, "-c", KILLER, tmp_path / "run"], capture_output=True, text=True, timeout=300)
    codes = [line for line in run.stdout.splitlines() if line.isdigit()]
    assert codes == ["9", "9", "9", "0"], run.stdout + run.stderr
    trials = failed(tmp_path / "run")
    assert [t.user_attrs["died"] for t in trials[:3]] == [1, 2, 3]
    assert [t.user_attrs.get("reason") for t in trials[:3]] == [None, None, "its worker died 3 times"]
    assert Plan.from_dict(trials[2].user_attrs["plan"]).layers
    assert all("its plan must not have been given up" in t.user_attrs["reason"] for t in trials[3:])  # another control of the same plan
    assert "RUNNING" not in states(tmp_path / "run")


def at_most(job, examples, when=lambda: True):
    """``job`` whose model runs out of memory with more than so many examples."""
    def exhausted(_, inputs):
        if len(inputs[0]) > examples and when():
            raise MemoryError

    job["model"].register_forward_pre_hook(exhausted)
    return {**job, "proxy": {"batch": 50}}


def test_memory_exhausted_once_halves_the_batch_and_nothing_fails(job, calls, monkeypatch, tmp_path):
    monkeypatch.setenv("LRSEARCH_CACHE", str(tmp_path / "cache"))
    notes, once = Notes(), []
    small = at_most(job, 30, lambda: bool(calls) and not once and not once.append(1))
    result = lrsearch.search(**small, progress=notes)
    assert [n for n in notes.notes if "memory" in n] == [
        "out of memory: models are run on 25 examples at a time from here on; lower proxy.batch",
    ]
    assert failed(job["out"]) == []
    assert len(result.front)


def test_the_baseline_and_the_correction_take_smaller_batches_too(job, monkeypatch, tmp_path):
    monkeypatch.setenv("LRSEARCH_CACHE", str(tmp_path / "cache"))
    notes = Notes()
    result = lrsearch.search(**at_most(job, 10), progress=notes)
    assert [n.split(" examples")[0].split()[-1] for n in notes.notes if "memory" in n] == ["25", "12", "6"]
    assert len(result.front)


def test_the_profiles_statistics_begin_again_in_smaller_batches(job, monkeypatch, tmp_path):
    monkeypatch.setenv("LRSEARCH_CACHE", str(tmp_path / "cache"))
    notes = Notes()
    lrsearch.search(**at_most(job, 20, lambda: not torch.is_inference_mode_enabled()), progress=notes)
    assert [n.split(" examples")[0].split()[-1] for n in notes.notes if "memory" in n] == ["25", "12"]


def test_a_finetune_step_beyond_memory_is_told_as_such(job):
    small = at_most({**job, **FINETUNED}, 20, torch.is_grad_enabled)
    small["proxy"] = {**FINETUNED["proxy"], "batch": 10}
    lrsearch.search(**small)
    reasons = [t.user_attrs["reason"] for t in failed(job["out"])]
    assert reasons
    assert all("a finetune step must fit into memory; got MemoryError:. Lower proxy.finetune.batch" in r for r in reasons)


def test_an_exhausted_memory_is_no_matter_of_shapes(job):
    with pytest.raises(lrsearch.LrsearchError, match="one example must fit into memory") as caught:
        lrsearch.search(**at_most(job, 0, torch.is_inference_mode_enabled))
    assert not isinstance(caught.value, DataError)


def test_an_os_error_of_the_model_fails_its_plan_alone(job, poison):
    poison.error = FileNotFoundError("lookup table")
    result = lrsearch.search(**job)
    assert poison.tries == 3
    assert "FileNotFoundError: lookup table" in failed(job["out"])[-1].user_attrs["reason"]
    assert (result.trials.source == "search").sum() == 3
