import numpy as np
import pytest
import torch
from torch import nn

from lrsearch.errors import DataError, ModelError, ScoreError
from lrsearch.task.data import Examples
from lrsearch.task.scoring import check_labels, predict, score, top1

LABELS = torch.tensor([0, 1, 2, 0])


def softmax(logits):
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def test_a_score_is_the_direct_formula():
    outputs, reference = 3 * torch.randn(4, 3), 3 * torch.randn(4, 3)
    p, q = softmax(reference.double().numpy()), softmax(outputs.double().numpy())
    kl = (p * np.log(p / q)).sum(1)
    result = score(outputs, reference, LABELS, top1, 7, True, "here")
    assert result.kl == pytest.approx(kl.mean(), rel=1e-5)
    assert result.kl_stderr == pytest.approx(kl.std(ddof=1) / 2, rel=1e-5)
    assert result.metric == (outputs.argmax(1) == LABELS).float().mean()
    assert (result.fidelity, result.batchnorm) == (7, True)


def test_outputs_equal_to_the_reference_have_no_divergence():
    outputs = torch.randn(4, 3)
    result = score(outputs, outputs, LABELS, lambda o, y: 0.25, 0, False, "here")
    assert (result.kl, result.kl_stderr, result.metric) == (0.0, 0.0, 0.25)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_outputs_that_are_not_finite_are_a_score_error(bad):
    outputs = torch.randn(4, 3)
    outputs[2, 1] = bad
    with pytest.raises(ScoreError, match="^trial 3: "):
        score(outputs, torch.randn(4, 3), LABELS, top1, 0, False, "trial 3")


def test_a_metric_that_is_not_finite_is_a_score_error():
    with pytest.raises(ScoreError, match="^trial 3: "):
        score(torch.randn(4, 3), torch.randn(4, 3), LABELS, lambda o, y: float("nan"), 0, False, "trial 3")


@pytest.mark.parametrize(
    "labels", [torch.tensor([0, 3]), torch.tensor([-1, 0]), torch.tensor([0.0, 1.0]), torch.eye(3, dtype=torch.int64)[:2]], ids=str
)
def test_labels_must_be_classes_of_the_model(labels):
    check_labels(torch.zeros(2, 3), Examples((torch.zeros(2, 1), torch.tensor([0, 2])), "score"))
    with pytest.raises(DataError, match=r"^data\.score: labels must be class indices below 3"):
        check_labels(torch.zeros(2, 3), Examples((torch.zeros(2, 1), labels), "score"))


class Returns(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    "function", [lambda x: {"logits": x}, lambda x: (x, x), lambda x: x[:, None], lambda x: x[:, 0], lambda x: x.argmax(1, keepdim=True)],
    ids=["dict", "tuple", "3-d", "1-d", "integers"],
)
def test_outputs_must_be_logits(function):
    with pytest.raises(ModelError, match="logits"):
        predict(Returns(function), Examples((torch.zeros(4, 3), LABELS), "score"), 2)


def test_predict_evaluates_in_order_and_leaves_the_mode():
    x, model = torch.randn(5, 3), nn.Dropout(0.5).train()
    assert torch.equal(predict(model, Examples((x, torch.zeros(5)), "score"), 2), x)
    assert model.training


def test_a_metric_that_fails_is_a_score_error():
    with pytest.raises(ScoreError, match="KeyError"):
        score(torch.randn(4, 3), torch.randn(4, 3), LABELS, lambda o, y: {}["x"], 0, False, "trial 3")
