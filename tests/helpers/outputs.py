"""What a classifier returns for a set of examples, in one piece, and references to compare with."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrsearch.task.data import Examples
from lrsearch.task.forward import forward, inference, joined
from lrsearch.task.memory import BatchSize
from lrsearch.task.scoring import Reference
from lrsearch.task.softmax import Classification
from lrsearch.train.teacher import Teacher

TASK = Classification()


def predict(model: nn.Module, examples: Examples, batch: int = 50) -> Tensor:
    """Logits ``(n, classes)``."""
    with inference(model):
        return torch.cat([forward(model, each.inputs) for each in examples.batches(batch)])


def divergence(outputs: Tensor, reference: Tensor) -> Tensor:
    """KL(reference ‖ outputs) of each example."""
    return F.kl_div(outputs.log_softmax(-1), reference.log_softmax(-1), log_target=True, reduction="none").sum(-1)


def top1(outputs: Tensor, labels: Tensor) -> float:
    return float((outputs.argmax(-1) == labels).float().mean())


def reference_of(model: nn.Module, examples: Examples, batch: int = 50) -> Reference:
    return Reference(TASK, model, examples, BatchSize(batch))


def everything(examples: Examples) -> tuple[Tensor, Tensor]:
    """All inputs and all labels."""
    batches = list(examples.batches(len(examples)))
    return joined([b.inputs for b in batches]), joined([b.labels for b in batches])


def teacher_of(model: nn.Module, train: Examples, config) -> Teacher:
    """``model`` as the teacher of a training on ``train``."""
    return Teacher(model, TASK, train, config, BatchSize(50))


def last_counts(best) -> bool:
    """In the place of ``Best.judge``: the last state is the best, however far it is."""
    best._values = {}
    return True
