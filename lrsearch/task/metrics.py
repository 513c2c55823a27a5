"""Metrics: outputs and labels → one number, higher is better. Built-in ones are summed batch by batch."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

UserMetric = Callable[[Any, Any], float]
IGNORED = -100  # label of what does not count, as torch's cross entropy has it


class Metric(ABC):
    """Sums over examples, and the number that they lead to.

    Attributes:
        name: for tables.
        mean: whether the number is the mean over the examples of what :meth:`sums` gives first, so that examples can be compared.
    """

    name: ClassVar[str]
    mean: ClassVar[bool]

    @abstractmethod
    def sums(self, outputs: Any, labels: Any) -> Tensor:
        """``(n, k)``: what each example adds; ``outputs`` as the task has them."""

    @abstractmethod
    def value(self, total: Tensor, examples: int) -> float:
        """The metric, of the sum ``(k,)`` over so many examples."""


class Top1(Metric):
    """Share of the examples whose largest output is the label."""

    name, mean = "top-1", True

    def sums(self, outputs: Any, labels: Tensor) -> Tensor:
        values: Tensor = outputs["values"]
        return (values[:, 0].argmax(-1) == class_indices(labels, values.shape[-1]))[:, None].double()

    def value(self, total: Tensor, examples: int) -> float:
        return float(total[0]) / examples


class TokenAccuracy(Metric):
    """Share of the positions whose largest output is the label; those labelled -100 or masked do not count."""

    name, mean = "accuracy of tokens", False

    def sums(self, outputs: Any, labels: Tensor) -> Tensor:
        counts = labels.flatten(1) != IGNORED
        if outputs["mask"] is not None:
            counts = counts & outputs["mask"]
        right = (outputs["values"].argmax(-1) == labels.flatten(1)) & counts
        return torch.stack([right.sum(1), counts.sum(1)], 1).double()

    def value(self, total: Tensor, examples: int) -> float:  # noqa: ARG002
        return float(total[0] / total[1].clamp_min(1))


class MeanIoU(Metric):
    """Intersection over union of each class that occurs, summed over all positions; their mean. -100 and 255 do not count."""

    name, mean = "mean IoU", False

    def sums(self, outputs: Any, labels: Tensor) -> Tensor:
        classes, found = outputs["values"].shape[-1], outputs["values"].argmax(-1)
        wanted = labels.flatten(1)
        counts = (wanted >= 0) & (wanted < classes)
        rows = []
        for f, w, c in zip(found, wanted, counts, strict=True):
            both = torch.bincount(w[c][f[c] == w[c]], minlength=classes)
            either = torch.bincount(f[c], minlength=classes) + torch.bincount(w[c], minlength=classes) - both
            rows.append(torch.cat([both, either]))
        return torch.stack(rows).double()

    def value(self, total: Tensor, examples: int) -> float:  # noqa: ARG002
        both, either = total.chunk(2)
        return float((both / either.clamp_min(1))[either > 0].mean())


class BinaryAccuracy(Metric):
    """Share of the decisions, at 0.5, that are as labelled."""

    name, mean = "accuracy", True

    def sums(self, outputs: Tensor, labels: Tensor) -> Tensor:
        right = (outputs > 0) == (labels.view_as(outputs) > 0.5)
        return right.flatten(1).double().mean(1, keepdim=True)

    def value(self, total: Tensor, examples: int) -> float:
        return float(total[0]) / examples


class R2(Metric):
    """Share of the variance of the labels that is explained, mean over the values (coefficient of determination)."""

    name, mean = "R²", False

    def sums(self, outputs: Tensor, labels: Tensor) -> Tensor:
        y, o = (values.reshape(len(outputs), -1).double() for values in (labels.reshape(outputs.shape), outputs))  # never broadcast
        return torch.cat([(y - o).square(), y, y.square()], 1)

    def value(self, total: Tensor, examples: int) -> float:
        residual, first, second = total.chunk(3)
        spread = second - first.square() / examples
        known = spread > 0
        return float((1 - residual[known] / spread[known]).mean()) if bool(known.any()) else float("nan")


def class_indices(labels: Tensor, classes: int) -> Tensor:
    """Class indices ``(n,)`` of labels ``(n,)``, ``(n, 1)`` or one-hot ``(n, classes)``."""
    if labels.dim() == 2 and labels.shape[1] == classes > 1:
        return labels.argmax(-1)
    return labels.flatten().long()
