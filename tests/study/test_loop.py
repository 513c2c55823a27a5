import copy
import pickletools
import sqlite3

import numpy as np
import pytest
import torch
from jobs import CONTROLS, FINETUNED, searching, stored
from optuna.trial import TrialState

import lrsearch
from lrsearch.errors import ArtifactError, ScoreError
from lrsearch.spec.front import non_dominated
from lrsearch.spec.progress import Progress


def test_a_study_from_end_to_end(job, result):
    trials, front = result.trials, result.front
    assert (trials.source == "search").sum() == 3
    assert set(trials.source) <= CONTROLS | {"search"}
    assert trials.complete.all()
    assert (trials.params_ratio <= 0.6).all()
    assert (trials.weight_bytes_ratio <= 0.65).all()
    assert list(front.trial) == list(trials[non_dominated(trials[["divergence", "params"]])].sort_values("params", ascending=False).trial)
    assert {"source", "metric", "metric_drop", "divergence", "params", "params_ratio", "macs", "weight_bytes", "model"} <= {*front}
    assert {p.name for p in job["out"].iterdir()} >= {"front.csv", "front.parquet", "report.html", "study.db", "study.json", "search.log"}


@pytest.mark.parametrize("values", ["float32", "int8"])
def test_files_have_the_size_that_was_promised(job, values):
    limit = 3000 if values == "int8" else 7000
    budget = lrsearch.Budget(weight_bytes=f"{limit} B")
    result = lrsearch.search(**{**job, "budget": budget, "objectives": ("divergence", "weight_bytes"), "weights": {"values": values}})
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
    assert result.front.divergence[0] == pytest.approx(0, abs=1e-6)
    assert (result.front.params_ratio[0], result.front.metric_drop[0]) == (1.0, 0.0)


@pytest.mark.parametrize("objectives", [("metric", "params"), ("divergence", "macs", "weight_bytes")], ids="-".join)
def test_optuna_has_the_same_front(job, objectives):
    result = lrsearch.search(**job, objectives=objectives)
    best = {tuple(t.values) for t in stored(job["out"]).best_trials}
    first = "metric" if objectives[0] == "metric" else "divergence"
    assert {tuple(row) for row in result.front[[first, *objectives[1:]]].itertuples(index=False)} == best


@pytest.mark.parametrize("sampler", ["learned", "tpe", "random", "nsga2"])
def test_every_sampler_runs(job, sampler):
    trials = lrsearch.search(**searching(job, sampler=sampler, control_points=1)).trials
    assert (trials.source == "search").sum() == 3
    assert (trials.params_ratio <= 0.6).all()


def test_models_are_exactly_those_of_the_front(job, result):
    assert {f"models/{p.name}" for p in (job["out"] / "models").iterdir()} == set(result.front.model)


@pytest.mark.parametrize("study", ["result", "finetuned_result"])
def test_loaded_models_score_what_was_recorded(job, study, request):
    result = request.getfixturevalue(study)
    x, y = job["score"]
    with torch.no_grad():
        p = job["model"](x).double().log_softmax(1)
        for index, row in result.front.iterrows():
            q = result.load(index)(x).double().log_softmax(1)
            assert (q.argmax(1) == y).double().mean() == pytest.approx(row.metric)
            assert (p.exp() * (p - q)).sum(1).mean() == pytest.approx(row.divergence, rel=1e-3, abs=1e-6)


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
    """Whether the whole of it is a pickle; one number in 256 starts like the shortest."""
    try:
        *_, (_, _, end) = pickletools.genops(data)
        return end == len(data) - 1
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
    usable = result.front[~result.front.at_chance]  # the status names no plan that guesses
    assert f"params {usable.params_ratio.iloc[-1]:.1%}" in watch.best[-1]
    assert np.isfinite(result.trials.divergence).all()
