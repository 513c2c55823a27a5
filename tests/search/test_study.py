import copy
import itertools
import pickletools
import shutil
import sqlite3
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
import torch
from optuna.trial import TrialState

import lrsearch
from lrsearch.errors import ArtifactError, BudgetError, ConfigError, DataError, ScoreError, StudyError
from lrsearch.proxy.evaluator import Evaluator
from lrsearch.search import study as study_module
from lrsearch.search.progress import Progress
from lrsearch.search.session import lock
from lrsearch.spec.front import non_dominated

CONTROLS = {"uniform", "sparse-only", "low-rank-only", "knapsack"}
FINETUNED = {
    "proxy": {"finetune": {"steps": 3, "batch": 25}},
    "search": {"trials": 8, "control_points": 1, "lowest": 0.2, "sampler": "random"},
}


def searching(job, **changes):
    return {**job, "search": {**job["search"], **changes}}


def stored(folder):
    return optuna.load_study(study_name="study", storage=f"sqlite:///{folder / 'study.db'}")


def states(folder):
    return [t.state.name for t in stored(folder).get_trials()]


def same(a, b):
    return a.drop(columns=["trial", "model"]).equals(b.drop(columns=["trial", "model"]))


@pytest.fixture
def calls(monkeypatch):
    """The places of the evaluations made; ``calls.fail`` may hold one to answer each with an error."""

    class Calls(list):
        fail = staticmethod(lambda count: None)

    made, score = Calls(), Evaluator.score

    def counted(self, fits, place):
        made.append(place)
        made.fail(len(made))
        return score(self, fits, place)

    monkeypatch.setattr(Evaluator, "score", counted)
    return made


@pytest.fixture
def result(job, tmp_path_factory, finished):
    """The finished study of ``job``: run once, then a copy of its folder for every test."""
    if not finished:
        finished.append(tmp_path_factory.mktemp("finished") / "run")
        lrsearch.search(**{**job, "out": finished[0]})
    shutil.copytree(finished[0], job["out"])
    return lrsearch.search(**job)


def test_a_study_from_end_to_end(job, result):
    trials, front = result.trials, result.front
    assert (trials.source == "search").sum() == 3
    assert set(trials.source) <= CONTROLS | {"search"}
    assert trials.complete.all()
    assert (trials.params_ratio <= 0.6).all()
    assert (trials.weight_bytes_ratio <= 0.65).all()
    assert list(front.trial) == list(trials[non_dominated(trials[["kl", "params"]])].sort_values("params", ascending=False).trial)
    assert {"source", "metric", "metric_drop", "kl", "params", "params_ratio", "macs", "weight_bytes", "model"} <= set(front.columns)
    assert {p.name for p in job["out"].iterdir()} >= {"front.csv", "front.parquet", "front.html", "study.db", "study.json", "search.log"}


@pytest.mark.parametrize("values", ["float32", "int8"])
def test_files_have_the_size_that_was_promised(job, values):
    limit = 3000 if values == "int8" else 7000
    budget = lrsearch.Budget(weight_bytes=f"{limit} B")
    result = lrsearch.search(**{**job, "budget": budget, "objectives": ("kl", "weight_bytes"), "storage": {"values": values}})
    sizes = [(job["out"] / model / "weights.safetensors").stat().st_size for model in result.front.model]
    assert sizes == list(result.front.weight_bytes)
    assert max(sizes) <= limit
    assert result.dense.weight_bytes == pytest.approx(4 * 1708, rel=0.3)  # its own type, whatever is stored


def test_the_model_is_not_changed(job):
    before = copy.deepcopy(job["model"].state_dict())
    job["model"].train()
    lrsearch.search(**{**job, **FINETUNED})
    assert job["model"].training
    assert all(torch.equal(v, before[k]) for k, v in job["model"].state_dict().items())


def test_the_same_job_gives_the_same_study(job, result, tmp_path):
    assert result.trials.equals(lrsearch.search(**{**job, "out": tmp_path / "again"}).trials)


def test_without_a_budget_the_dense_model_is_on_the_front(job):
    result = lrsearch.search(**{**job, "budget": None})
    assert result.front.source[0] == "dense"
    assert result.front.kl[0] == pytest.approx(0, abs=1e-6)
    assert (result.front.params_ratio[0], result.front.metric_drop[0]) == (1.0, 0.0)


@pytest.mark.parametrize("objectives", [("metric", "params"), ("kl", "macs", "weight_bytes")], ids="-".join)
def test_optuna_has_the_same_front(job, objectives):
    result = lrsearch.search(**job, objectives=objectives)
    best = {tuple(t.values) for t in stored(job["out"]).best_trials}
    first = "metric" if objectives[0] == "metric" else "kl"
    assert {tuple(row) for row in result.front[[first, *objectives[1:]]].itertuples(index=False)} == best


@pytest.mark.parametrize("sampler", ["learned", "tpe", "random", "nsga2"])
def test_every_sampler_runs(job, sampler):
    trials = lrsearch.search(**searching(job, sampler=sampler, control_points=1)).trials
    assert (trials.source == "search").sum() == 3
    assert (trials.params_ratio <= 0.6).all()


# ---- models


def test_models_are_exactly_those_of_the_front(job, result):
    assert {f"models/{p.name}" for p in (job["out"] / "models").iterdir()} == set(result.front.model)


@pytest.mark.parametrize("settings", [{}, FINETUNED], ids=["fitted", "finetuned"])
def test_loaded_models_score_what_was_recorded(job, settings):
    result = lrsearch.search(**{**job, **settings})
    x, y = job["score"]
    with torch.no_grad():
        p = job["model"](x).double().log_softmax(1)
        for index, row in result.front.iterrows():
            q = result.load(index)(x).double().log_softmax(1)
            assert (q.argmax(1) == y).double().mean() == pytest.approx(row.metric)
            assert (p.exp() * (p - q)).sum(1).mean() == pytest.approx(row.kl, rel=1e-3, abs=1e-6)


def test_models_load_by_path_onto_a_base(job, result):
    path = job["out"] / result.front.model[0]
    x = job["score"][0]
    assert torch.equal(lrsearch.load(path, base=job["model"])(x), result.load(0)(x))
    assert not lrsearch.load(path, base=job["model"].train()).training
    with pytest.raises(ArtifactError, match="base="):
        lrsearch.load(path)


@pytest.mark.parametrize("index", [99, -1])
def test_rows_that_are_not_on_the_front(result, index):
    with pytest.raises(ArtifactError, match=f"row of the front, 0 to {len(result.front) - 1}; got {index}"):
        result.load(index)


def unpickles(data: bytes) -> bool:
    try:
        return len(list(pickletools.genops(data))) > 0
    except Exception:
        return False


def test_nothing_in_the_folder_is_a_pickle(job, result):
    assert unpickles(b"\x80\x04N.")
    for path in (p for p in job["out"].rglob("*") if p.is_file()):
        data = path.read_bytes()
        assert not data.startswith((b"\x80", b"PK\x03\x04")), path
        assert not unpickles(data), path
    with sqlite3.connect(job["out"] / "study.db") as database:
        tables = [name for (name,) in database.execute("select name from sqlite_master where type = 'table'")]
        values = [v for table in tables for row in database.execute(f"select * from {table}") for v in row]
    database.close()
    assert values
    assert not any(isinstance(v, bytes) for v in values)


# ---- finetuning


def test_only_finetuned_candidates_are_on_the_front(job):
    trials = lrsearch.search(**{**job, **FINETUNED}).trials
    pruned = trials[~trials.complete]
    assert len(pruned)
    assert set(trials[trials.complete].finetune_steps) == {3}
    assert set(pruned.finetune_steps) == {0}
    assert not pruned.on_front.any()
    assert set(pruned.source) == {"search"}
    assert states(job["out"]).count("PRUNED") == len(pruned)


def test_finetuning_needs_training_data(job):
    with pytest.raises(ConfigError, match=r"proxy\.finetune\.steps"):
        lrsearch.search(**{**job, **FINETUNED, "train": None})


# ---- going on


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
    empty = lrsearch.search(**searching(job, timeout=1e-9))
    assert (calls, len(empty.trials), len(empty.front)) == ([], 0, 0)
    assert empty.comparison.empty
    empty.plot()
    assert len(lrsearch.search(**job).front)


def interrupt(*_):
    raise KeyboardInterrupt


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
    assert (job["out"] / "front.html").exists()


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


# ---- failures


def test_a_candidate_that_fails_is_passed_over(job, calls):
    def fail(count):
        if count == 2:
            raise ScoreError("outputs must be finite", value="NaN", place="here", remedy="Mend it.")

    calls.fail = fail
    result = lrsearch.search(**job)
    failed = [t for t in stored(job["out"]).get_trials() if t.state == TrialState.FAIL]
    assert [t.user_attrs["reason"] for t in failed] == ["here: outputs must be finite; got NaN. Mend it."]
    assert (result.trials.source == "search").sum() == 3


def test_five_failures_in_a_row_end_the_study(job, calls):
    def fail(_):
        raise ScoreError("outputs must be finite", value="NaN", place="here", remedy="Mend it.")

    calls.fail = fail
    with pytest.raises(ScoreError):
        lrsearch.search(**job)
    assert len(calls) == 5


def test_a_model_that_gives_nan_is_one_clear_error(job, calls):
    with torch.no_grad():
        job["model"].head.bias[0] = float("nan")
    with pytest.raises(ScoreError, match="^baseline: .*must be finite"):
        lrsearch.search(**job)
    assert calls == []


def other_data(job):
    return {**job, "score": (job["score"][0] + 1, job["score"][1])}


def other_model(job):
    model = copy.deepcopy(job["model"])
    with torch.no_grad():
        model.head.bias.add_(1)
    return {**job, "model": model}


DIFFERENT = {
    r"config\.budget\.params was 0\.6, is 0\.5": lambda job: {**job, "budget": lrsearch.Budget(params=0.5, weight_bytes=0.65)},
    r"config\.budget was .*'weight_bytes': 0\.65\}, is \{'params': 0\.6\}": lambda job: {**job, "budget": lrsearch.Budget(params=0.6)},
    r"config\.storage\.values was 'float32', is 'int8'": lambda job: {**job, "storage": {"values": "int8"}},
    r"config\.search\.seed was 0, is 1": lambda job: searching(job, seed=1),
    r"inputs\.data\.score was": other_data,
    r"inputs\.profile was": other_model,
}


@pytest.mark.parametrize("difference", DIFFERENT)
def test_another_study_in_the_same_folder_is_refused_and_told_the_difference(job, result, difference):
    with pytest.raises(StudyError, match=difference):
        lrsearch.search(**DIFFERENT[difference](job))
    assert lrsearch.search(**job).trials.equals(result.trials)


@pytest.mark.parametrize(("name", "text"), [("study.json", "[1]"), ("study.json", "not JSON"), ("study.db", "not a database " * 100)])
def test_damaged_study_files_are_a_study_error(job, name, text):
    job["out"].mkdir()
    (job["out"] / name).write_text(text)
    with pytest.raises(StudyError):
        lrsearch.search(**job)


def test_a_folder_without_a_trial_may_be_configured_again(job):
    with pytest.raises(DataError):
        lrsearch.search(**{**job, "name": "first", "score": (torch.randn(3, 3, 12, 12), torch.tensor([0, 1, 4]))})
    assert len(lrsearch.search(**{**job, "name": "second"}).front)


def test_one_search_at_a_time(job, calls):
    hold = "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(flush=True); input()"
    job["out"].mkdir()
    with subprocess.Popen([sys.executable, "-c", hold, job["out"] / "study.lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        with pytest.raises(StudyError, match="in use"):
            lrsearch.search(**job)
        holder.kill()
        holder.wait()
    lock(job["out"]).release()
    assert calls == []


def test_a_folder_that_cannot_be_written(job):
    job["out"].write_text("a file")
    with pytest.raises(StudyError, match="writable"):
        lrsearch.search(**job)


WRONG = {
    "budget": (BudgetError, r"^budget\.params.*smallest possible", {"budget": lrsearch.Budget(params=0.01)}),
    "device": (ConfigError, "^device", {"device": "abacus"}),
    "space": (ConfigError, r"^space\.rules.*nothing\*", {"space": lrsearch.Space(rules=(lrsearch.Rule(layers=("nothing*",)),))}),
    "setting": (ConfigError, "Did you mean 'objectives'", {"objective": ("kl", "params")}),
    "calibration": (DataError, r"^data\.calibration.*at least 2", {"calibration": (torch.randn(1, 3, 12, 12), torch.zeros(1).long())}),
    "labels": (DataError, r"^data\.score: labels", {"score": (torch.randn(3, 3, 12, 12), torch.tensor([0, 1, 4]))}),
    "metric": (ConfigError, r"^proxy\.metric", {"proxy": {"metric": "nowhere_at_all:f"}}),
    "shape of score": (lrsearch.LrsearchError, "score", {"score": (torch.randn(3, 1, 12, 12), torch.zeros(3).long())}),
    "shape of train": (lrsearch.LrsearchError, "train", {**FINETUNED, "train": (torch.randn(30, 1, 12, 12), torch.zeros(30).long())}),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_refused_before_any_evaluation(job, calls, wrong):
    kind, message, change = WRONG[wrong]
    with pytest.raises(kind, match=message):
        lrsearch.search(**{**job, **change})
    assert calls == []
    lock(job["out"]).release()


def test_progress_is_told_of_every_step(job):
    class Watch(Progress):
        def __init__(self):
            self.stages, self.best = [], []

        def stage(self, title, total, done=0):
            self.stages.append([title, total, done])

        def advance(self, best=""):
            self.stages[-1][2] += 1
            self.best.append(best)

    watch = Watch()
    result = lrsearch.search(**job, progress=watch)
    assert [done for _, _, done in watch.stages] == [total for _, total, _ in watch.stages]
    assert watch.stages[-1][1] == len(result.trials)
    assert f"params {result.front.params_ratio.iloc[-1]:.1%}" in watch.best[-1]
    assert np.isfinite(result.trials.kl).all()
