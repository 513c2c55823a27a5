"""Tasks: divergences are what they say, their projections have the Hessian of the divergence, metrics are as by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lrsearch.errors import DataError, ModelError
from lrsearch.task.base import Task, pick
from lrsearch.task.forward import tensors
from lrsearch.task.others import Binary, Embedding, Regression
from lrsearch.task.several import Several
from lrsearch.task.softmax import Classification, Segmentation, Tokens

MASK = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 1, 1]])


class Cubic(Task):
    """A task of a user's, which defines its divergence alone."""

    name = "cubic"

    def divergence(self, outputs, reference):
        apart = outputs - reference
        return (apart.square() * (1 + apart.abs()) * torch.arange(1, 4)).sum(1)


def regression():
    task = Regression()
    return task.fitted([torch.randn(50, 3, generator=torch.Generator().manual_seed(3)) * torch.tensor([1.0, 5.0, 0.1])])


CASES = {
    "classification": (Classification(), (4, 5), {}), "probabilities": (Classification(probabilities=True), (4, 5), {}),
    "segmentation": (Segmentation(), (4, 3, 2, 2), {}), "tokens": (Tokens(), (4, 3, 5), {"attention_mask": MASK}),
    "one logit": (Binary(), (4, 1), {}), "labels": (Binary(), (4, 3), {}), "regression": (regression(), (4, 3), {}),
    "embedding": (Embedding(), (4, 6), {}), "token embeddings": (Embedding(), (4, 3, 6), {"attention_mask": MASK}),
    "user's": (Cubic(), (4, 3), {}),
}


@pytest.fixture(params=CASES)
def case(request):
    task, shape, inputs = CASES[request.param]
    raw = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return task, raw.softmax(-1) if request.param == "probabilities" else raw, inputs


def test_equal_outputs_do_not_diverge_and_others_do(case):
    task, raw, inputs = case
    reference = task.outputs(raw, inputs)
    assert torch.allclose(task.divergence(reference, reference), torch.zeros(4, dtype=torch.float64), atol=1e-9)
    assert (task.divergence(task.outputs(raw.roll(1, 0), inputs), reference) > 1e-4).all()


def test_projections_have_the_hessian_of_the_divergence(case):
    """Half the mean square of ⟨v, Δ⟩ is the divergence of a small change Δ, for each example."""
    task, raw, inputs = case
    reference, generator = task.outputs(raw, inputs), torch.Generator().manual_seed(1)
    change = 1e-3 * torch.randn(raw.shape, generator=generator, dtype=torch.float64) * (raw if isinstance(task, Classification) else 1)
    moved = task.outputs(raw + change - (change.sum(-1, keepdim=True) / 5 if getattr(task, "probabilities", False) else 0), inputs)
    apart = [m - r for m, r in zip(floats(moved), floats(reference), strict=True)]
    draws = []
    for _ in range(6000):
        v = floats(task.projections(reference, 1.0, generator))
        draws.append(sum((d * p).flatten(1).sum(1) for d, p in zip(apart, v, strict=True)).square() / 2)
    predicted = torch.stack(draws).mean(0)
    assert torch.allclose(predicted, task.divergence(moved, reference), rtol=0.12)


def floats(outputs) -> list[Tensor]:
    return [t for t in tensors(outputs) if t.is_floating_point()]


def test_padding_does_not_count():
    task, raw = Tokens(), torch.randn(4, 3, 5)
    other = raw + 9 * (1 - MASK)[..., None] * torch.randn(4, 3, 5)
    inputs = {"attention_mask": MASK}
    assert torch.allclose(task.divergence(task.outputs(other, inputs), task.outputs(raw, inputs)), torch.zeros(4), atol=1e-6)
    assert task.divergence(task.outputs(other, {}), task.outputs(raw, {})).max() > 0.1


def test_kl_is_that_of_torch_and_probabilities_give_the_same():
    a, b = torch.randn(2, 6, 4).double()
    logits, probabilities = Classification(), Classification(probabilities=True)
    wanted = F.kl_div(a.log_softmax(-1), b.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    assert torch.allclose(logits.divergence(logits.outputs(a, {}), logits.outputs(b, {})), wanted)
    p, q = a.softmax(-1), b.softmax(-1)
    assert torch.allclose(probabilities.divergence(probabilities.outputs(p, {}), probabilities.outputs(q, {})), wanted)


def test_one_logit_diverges_as_its_two_classes_do():
    a, b = torch.randn(2, 6, 1).double()
    two = [torch.cat([x, torch.zeros(6, 1)], 1) for x in (a, b)]
    wanted = F.kl_div(two[0].log_softmax(-1), two[1].log_softmax(-1), log_target=True, reduction="none").sum(-1)
    assert torch.allclose(Binary().divergence(a, b), wanted)


def test_regression_is_in_units_of_the_dense_variance():
    task = Regression().fitted([torch.tensor([[0.0, 10.0], [2.0, 30.0]])])  # variances 1 and 100
    assert task.divergence(torch.tensor([[1.0, 10.0]]), torch.tensor([[0.0, 0.0]])).tolist() == [pytest.approx((1 + 1) / 2)]
    images = Regression().fitted([torch.cat([torch.zeros(1, 100), torch.full((1, 100), 2.0)])])
    assert float(images.divergence(torch.full((1, 100), 3.0), torch.zeros(1, 100))) == pytest.approx(9.0)


def test_several_outputs_are_weighed():
    task = Several({"a": Classification(), "b": Regression()}, {"b": 3.0})
    raw, other = ({"a": torch.randn(4, 3), "b": torch.randn(4, 2), "c": 1} for _ in range(2))
    outputs, reference = (task.outputs(task.picked(r), {}) for r in (raw, other))
    parts = [t.divergence(o, r) for t, o, r in zip(task.tasks.values(), outputs, reference, strict=True)]
    assert torch.allclose(task.divergence(outputs, reference), parts[0] + 3 * parts[1])
    a, b = task.projections(reference, 1.0, torch.Generator().manual_seed(0))
    assert torch.allclose(b.abs(), torch.full((4, 2), 3**0.5))
    assert a["values"].shape == (4, 1, 3)


@pytest.mark.parametrize(("task", "outputs", "labels", "expected"), [
    (Classification(), torch.eye(3), torch.tensor([0, 1, 0]), 2 / 3),
    (Classification(), torch.eye(3), torch.eye(3), 1.0),
    (Tokens(), torch.eye(3)[None], torch.tensor([[0, 0, -100]]), 1 / 2),
    (Segmentation(), torch.eye(2)[None].repeat(2, 1, 1), torch.tensor([[0, 1], [0, 0]]), (2 / 3 + 1 / 2) / 2),
    (Binary(), torch.tensor([[1.0], [-1.0], [2.0]]), torch.tensor([1, 1, 1]), 2 / 3),
    (Regression(), torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([1.0, 2.0, 6.0]), 1 - 9 / 14),
])
def test_metrics_are_as_by_hand(task, outputs, labels, expected):
    sums = task.metric.sums(task.outputs(outputs, {}), labels)
    assert len(sums) == len(outputs)
    assert task.metric.value(sums.sum(0), len(outputs)) == pytest.approx(expected)


def test_what_counts_is_named_or_likely():
    logits, hidden = torch.ones(2, 3), torch.zeros(2, 4)
    assert pick({"hidden": hidden, "logits": logits}) is logits
    assert pick((hidden, [logits]), "1.0") is logits
    assert pick({"hidden": hidden, "logits": logits}, "hidden") is hidden
    assert pick((logits, None, 3)) is logits
    assert len(pick((logits, hidden))) == 2
    with pytest.raises(ModelError, match="The model returns hidden, logits"):
        pick({"hidden": hidden, "logits": logits}, "heads")
    with pytest.raises(ModelError, match="must return tensors"):
        pick({"boxes": []})


@pytest.mark.parametrize(("task", "outputs", "labels"), [
    (Classification(), torch.randn(3, 4), torch.tensor([0, 1, 4])), (Classification(), torch.randn(3, 4), torch.rand(3)),
    (Tokens(), torch.randn(3, 2, 4), torch.tensor([0, 1, 2])), (Binary(), torch.randn(3, 1), torch.tensor([0, 1, 2])),
    (Regression(), torch.randn(3, 2), torch.rand(3)),
])
def test_labels_that_do_not_suit_are_refused(task, outputs, labels):
    with pytest.raises(DataError, match="labels must be"):
        task.check_labels(task.outputs(outputs, {}), labels, "data.score")


def test_training_on_labels_lowers_what_torch_lowers():
    o, y = torch.randn(5, 4), torch.tensor([0, 3, 1, 1, 2])
    assert torch.allclose(Classification().supervised(Classification().outputs(o, {}), y), F.cross_entropy(o, y))
    seg, at = torch.randn(2, 3, 4, 4), torch.randint(3, (2, 4, 4))
    assert torch.allclose(Segmentation().supervised(Segmentation().outputs(seg, {}), at), F.cross_entropy(seg, at))
    with pytest.raises(DataError, match="no loss of its own"):
        Embedding().supervised(Embedding().outputs(o, {}), y)
