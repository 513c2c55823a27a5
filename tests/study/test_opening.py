import copy
import json
import subprocess
import sys
import weakref
from threading import Timer

import pytest
import torch
from jobs import FINETUNED, Notes, searching

import lrsearch
from lrsearch.compress.prepare import prepared_copy
from lrsearch.errors import BudgetError, ConfigError, DataError, ModelError, ScoreError, StudyError
from lrsearch.profile import build as profiles
from lrsearch.spec import waiting
from lrsearch.study import opening
from lrsearch.study.workers import alone


def test_finetuning_needs_training_data(job):
    with pytest.raises(ConfigError, match=r"proxy\.finetune\.steps"):
        lrsearch.search(**{**job, **FINETUNED, "train": None})


def test_one_may_train_on_what_one_calibrates_with_but_not_on_what_is_scored(job):
    found = lrsearch.search(**{**job, **FINETUNED, "train": job["calibration"]})
    assert found.trials.finetune_steps.max() > 0
    with pytest.raises(DataError, match=r"data\.train and data\.score: .*60 inputs in both"):
        lrsearch.search(**{**job, **FINETUNED, "train": job["score"]})


def test_a_model_that_gives_nan_is_one_clear_error(job, calls):
    with torch.no_grad():
        job["model"].head.bias[0] = float("nan")
    with pytest.raises(ScoreError, match="^baseline: .*must be finite"):
        lrsearch.search(**job)
    assert calls == []


def other_data(job):
    return {**job, "score": (job["score"][0] + 1, job["score"][1])}


def other_calibration(job):
    return {**job, "calibration": (job["calibration"][0] + 1, job["calibration"][1])}


def other_model(job):
    model = copy.deepcopy(job["model"])
    with torch.no_grad():
        model.head.bias.add_(1)
    return {**job, "model": model}


DIFFERENT = {
    r"config\.budget\.params was 0\.6, is 0\.5": lambda job: {**job, "budget": lrsearch.Budget(params=0.5, weight_bytes=0.65)},
    r"config\.budget was .*'weight_bytes': 0\.65\}, is \{'params': 0\.6\}": lambda job: {**job, "budget": lrsearch.Budget(params=0.6)},
    r"config\.weights\.values was 'float32', is 'int8'": lambda job: {**job, "weights": {"values": "int8"}},
    r"config\.search\.seed was 0, is 1": lambda job: searching(job, seed=1),
    r"inputs\.data\.score was .* Give the same examples, read without random augmentation": other_data,
    r"inputs\.data\.calibration was .* Give the same examples, read without random augmentation": other_calibration,
    r"inputs\.profile was .* Give the same model and the same examples in the same order": other_model,
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


def held(path):
    """A process that holds the lock at ``path``."""
    hold = "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(flush=True); input()"
    holder = subprocess.Popen([sys.executable, "-c", hold, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    holder.stdout.readline()
    return holder


def test_a_search_that_waits_for_the_profile_of_another_says_so(job, result, tmp_path, monkeypatch):
    class Waiting(Notes):
        def note(self, text):
            super().note(text)
            if text.startswith("another process"):
                holder.kill()

    monkeypatch.setattr(waiting, "PATIENCE", 0.1)
    profile = json.loads((job["out"] / "study.json").read_text())["inputs"]["profile"]
    progress = Waiting()
    monkeypatch.setenv("LRSEARCH_CACHE", str(tmp_path / "cache"))
    with held(tmp_path / "cache" / "profiles" / profile / profiles.LOCK) as holder:
        safety = Timer(60, holder.kill)
        safety.start()
        lrsearch.search(**{**job, "out": job["out"].with_name("second"), "progress": progress})
        safety.cancel()
    assert "another process makes the profile of this model; this one waits for it" in progress.notes


def test_one_search_at_a_time(job, calls):
    job["out"].mkdir()
    with held(job["out"] / "study.lock") as holder:
        with pytest.raises(StudyError, match="in use"):
            lrsearch.search(**job)
        holder.kill()
        holder.wait()
    with alone(job["out"]):
        assert calls == []


def test_a_folder_that_cannot_be_written(job):
    job["out"].write_text("a file")
    with pytest.raises(StudyError, match="writable"):
        lrsearch.search(**job)


WRONG = {
    "budget": (BudgetError, r"^budget\.params.*smallest possible", {"budget": lrsearch.Budget(params=0.01)}),
    "device": (ConfigError, "^device", {"device": "abacus"}),
    "space": (ConfigError, r"^space\.rules.*nothing\*", {"space": lrsearch.Space(rules=(lrsearch.Rule(layers=("nothing*",)),))}),
    "setting": (ConfigError, "Did you mean 'objectives'", {"objective": ("divergence", "params")}),
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
    with alone(job["out"]):
        pass


def test_a_search_may_be_narrowed_to_families_without_a_new_profile(job, result, monkeypatch):
    monkeypatch.setattr(profiles, "sweep", pytest.fail)
    narrow = lrsearch.search(**{**searching(job, families=("sparse",)), "out": job["out"].with_name("narrow")})
    assert not narrow.trials[["low_rank_layers", "low_rank_sparse_layers"]].any(axis=None)
    assert narrow.trials.sparse_layers.max() > 0
    assert "low-rank-only" not in set(narrow.trials.source)


def spoiled(data, index, value):
    inputs = data[0].clone()
    inputs[index, 1, 2, 3] = value
    return inputs, data[1]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("role", "index"), [("calibration", 0), ("calibration", 49), ("score", 31), ("train", 17)])
def test_an_input_that_is_not_finite_is_named_before_the_profile(job, monkeypatch, role, index, value):
    monkeypatch.setattr(opening, "build", pytest.fail)
    with pytest.raises(DataError, match=rf"^data\.{role}: inputs must be finite; got NaN or infinity in example {index}\. "):
        lrsearch.search(**{**job, **FINETUNED, role: spoiled(job[role], index, value)})


def test_of_training_data_that_are_used_in_part_the_users_own_index_is_named(job):
    x, y = (t.repeat(4, *[1] * (t.dim() - 1)) for t in job["train"])
    few = {"proxy": {"finetune": {"steps": 2, "rungs": 1, "batch": 10}}}
    with pytest.raises(DataError, match=r"in example 1\d\d\. "):
        lrsearch.search(**{**job, **few, "train": (torch.cat([x[:100], torch.full_like(x[100:], torch.inf)]), y)})


class OneRow(torch.nn.Sequential):
    """Means over the whole batch."""

    def forward(self, x):
        return super().forward(x).mean(0, keepdim=True)


@pytest.mark.parametrize("labelled", [True, False])
def test_a_model_with_one_row_for_a_batch_is_one_clear_error(job, labelled):
    sets = {role: job[role] if labelled else job[role][0] for role in ("calibration", "score")}
    with pytest.raises(ModelError, match=r"^data\.score: .*a row for each example; got \(1, 4\) for 60 examples"):
        lrsearch.search(**{**job, **sets, "train": None, "model": OneRow(job["model"])})


class Ungraded(torch.nn.Sequential):
    """Takes no gradient."""

    def forward(self, x):
        with torch.no_grad():
            return super().forward(x)


@pytest.mark.parametrize(("wrapper", "told"), [(Ungraded, True), (torch.nn.Sequential, False)])
def test_a_model_that_takes_no_gradient_is_told_and_its_profile_is_its_own(job, wrapper, told):
    progress = Notes()
    lrsearch.search(**{**job, "model": wrapper(job["model"]), "progress": progress})
    assert ("outputs take no gradient: damage is that of output errors" in progress.notes) == told


def test_what_is_profiled_is_the_only_prepared_model_left(job, monkeypatch):
    kept, profiled = [], opening._profiled
    make = lambda *a: kept.append(weakref.ref(made := prepared_copy(*a))) or made  # noqa: E731
    monkeypatch.setattr(opening, "prepared_copy", make)
    monkeypatch.setattr(opening, "_profiled", lambda *a: kept.append(kept[0]()) or profiled(*a))
    lrsearch.search(**job)
    assert kept[1:] == [None]
