"""The task of a study is named or chosen, checked, and told."""

import pytest
import torch
from torch import nn

from lrsearch.errors import ConfigError, DataError, ModelError
from lrsearch.spec.registry import resolve
from lrsearch.task.base import Task
from lrsearch.task.choose import settled_task
from lrsearch.task.data import Examples
from lrsearch.task.others import Regression
from lrsearch.task.softmax import Classification
from lrsearch.task.stored import task_from_dict, task_to_dict

X = torch.randn(70, 5, generator=torch.Generator().manual_seed(0))


class Mine(Task):
    """Absolute differences."""

    name = "mine"

    def divergence(self, outputs, reference):
        return (outputs - reference).abs().sum(1)


class Noisy(nn.Linear):
    def forward(self, x):
        return super().forward(x) + torch.randn(len(x), self.out_features)


def settled(wanted, model, labels, notes=None, **more):
    scoring = Examples((X, labels), "score")
    return settled_task(wanted, model, scoring, scoring, resolve, note=(notes if notes is not None else []).append, **more)


def test_the_choice_is_told_in_one_line():
    notes = []
    task = settled("auto", nn.Sequential(nn.Linear(5, 3), nn.Softmax(-1)), torch.arange(70) % 3, notes)
    assert (task.name, task.probabilities) == ("classification", True)
    (note,) = notes
    assert note.startswith("task: classification (probabilities that sum to 1")


def test_a_named_task_knows_probabilities_too():
    assert settled("classification", nn.Sequential(nn.Linear(5, 3), nn.Softmax(-1)), None).probabilities
    assert not settled(Classification, nn.Linear(5, 3), None).probabilities
    assert settled("binary", nn.Sequential(nn.Linear(5, 3), nn.Sigmoid()), None).probabilities


def test_a_task_of_the_users(tmp_path, monkeypatch):
    assert settled(Mine, nn.Linear(5, 3), None).name == "mine"
    mine = Mine()
    assert settled(mine, nn.Linear(5, 3), None) is mine
    text = "from lrsearch.task.others import Regression\nclass Own(Regression):\n    name = 'own'\nother = 3\n"
    (tmp_path / "tasks_of_mine.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert settled("tasks_of_mine:Own", nn.Linear(5, 3), None).name == "own"
    with pytest.raises(ConfigError, match=r"^task: must (be a subclass|name a function)"):
        settled("tasks_of_mine:other", nn.Linear(5, 3), None)


def test_an_unknown_task_names_the_known_ones_and_how_to_add_one():
    with pytest.raises(ConfigError, match=r"One of classification, .* decorate it with @lrsearch.extend.TASKS.register"):
        settled("ranking", nn.Linear(5, 3), None)


def test_regression_learns_the_variance_of_the_dense_outputs_and_is_stored_with_it():
    model = nn.Linear(5, 2)
    task = settled("auto", model, torch.randn(70, 2))
    assert isinstance(task, Regression)
    assert torch.allclose(task.variance, model(X).var(0, correction=0), rtol=1e-4)
    again = task_from_dict(task_to_dict(task))
    a, b = torch.randn(2, 4, 2)
    assert torch.equal(again.divergence(a, b), task.divergence(a, b))


@pytest.mark.parametrize("labels", [torch.full((70,), 3), -torch.ones(70, dtype=torch.long), torch.rand(70)], ids=["high", "low", "float"])
def test_labels_must_be_classes_of_the_model(labels):
    with pytest.raises(DataError, match=r"^data\.score: labels must be class indices below 3"):
        settled("classification", nn.Linear(5, 3), labels)


def test_a_label_is_checked_wherever_it_stands():
    labels = torch.zeros(70, dtype=torch.long)
    labels[69] = 3
    with pytest.raises(DataError, match="from 0 to 3"):
        settled("auto", nn.Linear(5, 3), labels)


def test_a_random_model_is_refused():
    with pytest.raises(ModelError, match="must return the same for the same inputs"):
        settled("auto", Noisy(5, 3), None)


def test_constant_outputs_are_told():
    notes, model = [], nn.Linear(5, 3)
    nn.init.zeros_(model.weight)
    settled("auto", model, None, notes)
    assert any("returns the same for every example" in note for note in notes)


def test_a_model_that_fails_names_data_and_shapes():
    with pytest.raises(ModelError, match=r"^data\.score: \(64, 5\): the model must accept a batch of the data"):
        settled("auto", nn.Linear(4, 3), None)


def test_a_metric_of_the_users_takes_the_place_of_the_tasks():
    assert settled("auto", nn.Linear(5, 3), torch.arange(70) % 3, metric=max).metric is max


class Heads(nn.Module):
    """Scores (n, 3), which sum to 1, and boxes (n, 4), as a dict or a tuple."""

    def __init__(self, named=True):
        super().__init__()
        self.scores, self.boxes, self.named = nn.Linear(5, 3), nn.Linear(5, 4), named

    def forward(self, x):
        found = self.scores(x).softmax(1), self.boxes(x)
        return {"scores": found[0], "boxes": found[1], "more": x} if self.named else found


def test_outputs_that_a_study_weighs_count_so_whether_their_tasks_are_named_or_found():
    notes, weights = [], {"boxes": 0.5, "scores": 2.0}
    found = settled("auto", Heads(), None, notes, output=weights)
    assert notes[0].startswith("task: several (of the outputs: boxes classification, scores classification, as output weighs them)")
    named = settled({"scores": "classification", "boxes": "regression"}, Heads(), None, output=weights)
    assert found.weights == named.weights == weights
    assert [named.tasks[n].name for n in ("scores", "boxes")] == ["classification", "regression"]
    assert named.tasks["scores"].probabilities
    assert isinstance(named.tasks["boxes"].variance, torch.Tensor)
    again = task_from_dict(task_to_dict(named))
    assert again.identity == named.identity


def test_outputs_of_a_tuple_are_weighed_by_number_and_all_may_be_of_one_task():
    task = settled("regression", Heads(named=False), None, output={"1": 3.0})
    assert (list(task.tasks), task.weights) == (["1"], {"1": 3.0})


@pytest.mark.parametrize("wanted", ["auto", "regression", {"nothing": "regression"}])
def test_an_output_that_the_model_does_not_return_is_refused_by_name(wanted):
    with pytest.raises(ModelError, match="nothing"):
        settled(wanted, Heads(), None, output={"nothing": 1.0})
