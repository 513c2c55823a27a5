import numpy as np
import pytest
import torch
from outputs import TASK, reference_of
from torch import nn

from lrsearch.errors import DataError, ModelError, ScoreError
from lrsearch.task.data import Examples
from lrsearch.task.forward import joined
from lrsearch.task.memory import BatchSize
from lrsearch.task.others import Regression
from lrsearch.task.scoring import Reference

LABELS = torch.tensor([0, 1, 2, 0])


class Plus(nn.Module):
    """The inputs and something."""

    def __init__(self, more=0.0):
        super().__init__()
        self.more = nn.Parameter(torch.as_tensor(more))

    def forward(self, x):
        return x + self.more


def softmax(logits):
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def compared(outputs, reference, labels=LABELS, task=TASK, place="here"):
    examples = Examples((reference, labels), "score")
    return Reference(task, Plus(), examples, BatchSize(4)).compare(Plus(outputs - reference), place)


def test_a_score_is_the_direct_formula():
    outputs, reference = 3 * torch.randn(4, 3), 3 * torch.randn(4, 3)
    p, q = softmax(reference.double().numpy()), softmax(outputs.double().numpy())
    kl = (p * np.log(p / q)).sum(1)
    found = compared(outputs, reference)
    result = found.score(7, True, "here")
    assert result.divergence == pytest.approx(kl.mean(), rel=1e-4)
    assert result.divergence_stderr == pytest.approx(kl.std(ddof=1) / 2, rel=1e-4)
    assert result.metric == (outputs.argmax(1) == LABELS).float().mean()
    assert (result.fidelity, result.batchnorm) == (7, True)
    np.testing.assert_allclose(found.losses("divergence").numpy(), kl, rtol=1e-4)
    assert found.losses("metric").tolist() == (outputs.argmax(1) != LABELS).float().tolist()


def test_outputs_equal_to_the_reference_have_no_divergence():
    outputs = torch.randn(4, 3)
    result = compared(outputs, outputs, task=TASK.measured_by(lambda o, y: 0.25)).score(0, False, "here")
    assert (result.divergence, result.divergence_stderr, result.metric) == (0.0, 0.0, 0.25)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_outputs_that_are_not_finite_are_a_score_error(bad):
    outputs = torch.randn(4, 3)
    outputs[2, 1] = bad
    with pytest.raises(ScoreError, match="^trial 3: "):
        compared(outputs, torch.randn(4, 3)).score(0, False, "trial 3")


def test_a_metric_that_is_not_finite_is_a_score_error():
    with pytest.raises(ScoreError, match="^trial 3: "):
        compared(torch.randn(4, 3), torch.randn(4, 3), task=TASK.measured_by(lambda o, y: float("nan"))).score(0, False, "trial 3")


def test_a_metric_that_fails_is_a_score_error():
    with pytest.raises(ScoreError, match="^trial 3: .*KeyError"):
        compared(torch.randn(4, 3), torch.randn(4, 3), task=TASK.measured_by(lambda o, y: {}["x"]), place="trial 3")


def test_a_metric_of_the_users_sees_all_outputs_and_labels_at_once():
    seen = []
    outputs, reference = torch.randn(4, 3), torch.randn(4, 3)
    task = TASK.measured_by(lambda o, y: seen.append((o, y)) or 0.5)
    found = Reference(task, Plus(), Examples((reference, LABELS), "score"), BatchSize(3))
    model = nn.Sequential(nn.Linear(3, 3))
    assert found.compare(model).metric == 0.5
    assert torch.allclose(seen[0][0], model(reference), atol=1e-6)
    assert seen[0][1].tolist() == LABELS.tolist()
    assert compared(outputs, reference, task=TASK.measured_by(lambda o, y: 1.0)).losses("metric") is None


def test_without_labels_there_is_no_metric():
    found = compared(torch.randn(4, 3), torch.randn(4, 3), labels=None)
    assert found.metric is None
    assert found.score(0, False, "here").metric is None
    assert len(found.divergences) == 4


class Returns(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    "function", [lambda x: (x, x), lambda x: x[:, None], lambda x: x[:, 0], lambda x: x.argmax(1, keepdim=True), lambda x: {"a": 3}],
    ids=["tuple", "3-d", "1-d", "integers", "nothing"],
)
def test_outputs_of_a_classifier_must_be_logits(function):
    with pytest.raises(ModelError, match="logits|must return tensors"):
        reference_of(Returns(function), Examples((torch.zeros(4, 3), LABELS), "score"), 2)


def test_a_model_that_fails_is_told_with_the_data():
    with pytest.raises(DataError, match=r"^data\.score: the model must accept the inputs"):
        reference_of(nn.Linear(5, 2), Examples((torch.zeros(4, 3), LABELS), "score"), 2)


def test_references_are_in_order_and_leave_the_mode():
    x, model = torch.randn(5, 3), nn.Dropout(0.5).train()
    reference = reference_of(model, Examples((x, torch.zeros(5)), "score"), 2)
    assert torch.equal(joined(reference.all())["values"][:, 0], x)
    assert model.training
    assert torch.equal(joined(reference.part([3, 1]).all())["values"][:, 0], x[[3, 1]])


def test_outputs_that_are_too_large_to_keep_are_computed_again():
    x, model = torch.randn(5, 3), nn.Linear(3, 2)
    kept, again = (Reference(Regression(), model, Examples(x, "score"), BatchSize(2), cap=cap) for cap in (10**6, 0))
    other = nn.Linear(3, 2)
    assert torch.equal(kept.compare(other).divergences, again.compare(other).divergences)
    before = again.compare(other).divergences
    with torch.no_grad():
        model.weight.zero_()
    assert torch.equal(again.compare(other).divergences, before)


def test_batches_of_several_shapes_are_compared_one_by_one():
    batches = [(torch.randn(2, 4, 3), None), (torch.randn(1, 2, 3), None)]
    model, other = (nn.Linear(3, 2).requires_grad_(False) for _ in range(2))
    examples = Examples(iter(batches), "score")
    found = Reference(Regression(), model, examples, BatchSize(100)).compare(other).divergences
    assert found.tolist() == pytest.approx([float((model(x[i]) - other(x[i])).square().mean()) for x, _ in batches for i in range(len(x))])
