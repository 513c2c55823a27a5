"""Model and examples → how far the outputs are from the dense model's, and how good they are."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lrsearch.errors import DataError, ScoreError
from lrsearch.spec.memory import memory_share
from lrsearch.spec.score import Chance, Score
from lrsearch.task.base import Outputs, Task
from lrsearch.task.data import Batch, Examples
from lrsearch.task.forward import forward, inference, joined, moved, rows, tensors
from lrsearch.task.memory import BatchSize
from lrsearch.task.metrics import Metric

T = TypeVar("T")
LOOKED_AT = 2048  # examples that tell what chance is
REFERENCE_CAP = memory_share(1, 6)  # bytes of outputs that are kept; those of larger sets are computed again


@dataclass(frozen=True)
class Comparison:
    """A model beside the dense one, on all examples of a set.

    Attributes:
        divergences: ``(n,)``, on the CPU.
        errors: ``(n,)``: 1 minus what each example adds to the metric; None where the metric is no mean over examples.
        metric: None without a metric or labels.
    """

    divergences: Tensor
    errors: Tensor | None
    metric: float | None

    def losses(self, objective: str) -> Tensor | None:
        """What each example adds to the mean that ``objective`` (``divergence`` or ``metric``) compares; None if it is of all at once."""
        return self.divergences if objective == "divergence" else self.errors

    def score(self, fidelity: int, batchnorm: bool, place: str) -> Score:
        """As a score.

        Raises:
            ScoreError: it is not finite.
        """
        far, quality, n = self.divergences, self.metric, len(self.divergences)
        if not bool(far.isfinite().all()) or (quality is not None and not isfinite(quality)):
            raise ScoreError(
                "outputs and metric must be finite", value=f"metric {quality}, mean divergence {float(far.mean())}", place=place,
                remedy="Lower proxy.finetune.learning_rate, or exclude the layer that overflows.",
            )
        stderr = float(far.std() / n**0.5) if n > 1 else 0.0
        binomial = (quality * (1 - quality) / n) ** 0.5 if self.errors is not None and quality is not None else None
        return Score(quality, max(0.0, float(far.mean())), stderr, fidelity, batchnorm, binomial)


class Reference:
    """The dense model's outputs on examples: kept on the CPU where they fit, computed again where they do not.

    Args:
        task: says which outputs count.
        model: the dense model, left as it was.
        examples: to run it on.
        sizes: examples at a time.
        device: where the model is.
        cap: bytes to keep.

    Raises:
        DataError: the model fails on the inputs.
        ModelError: the outputs do not suit the task, or not even one example fits into memory.
    """

    def __init__(
        self, task: Task, model: nn.Module, examples: Examples, sizes: BatchSize, device: torch.device | str = "cpu",
        cap: int = REFERENCE_CAP,
    ) -> None:
        self.task, self.examples, self.sizes, self.device = task, examples, sizes, device
        self._kept: Outputs | None = None  # of all examples
        self._parts: Sequence[Outputs] | None = None  # of each batch, where shapes vary
        self._model: nn.Module | None = None
        parts = _guarded(examples, sizes, lambda size: self._computed(model, size, cap))
        if parts is None:
            self._model = copy.deepcopy(model).eval()
        elif len({tuple(t.shape[1:] for t in tensors(p)) for p in parts}) == 1:
            self._kept = joined(parts)
        else:
            self._parts = parts

    def _computed(self, model: nn.Module, size: int, cap: int) -> list[Outputs] | None:
        parts, held = [], 0
        with inference(model):
            for batch in self.examples.batches(size, self.device):
                parts.append(moved(self.task.run(model, batch.inputs), "cpu"))
                held += sum(t.numel() * t.element_size() for t in tensors(parts[-1]))
                if held > cap:
                    return None
        return parts

    def batches(self, size: int) -> Iterator[tuple[Batch, Outputs]]:
        """The examples, ``size`` at a time, each batch with the dense model's outputs; both on the device."""
        start = 0
        for number, batch in enumerate(self.examples.batches(size, self.device)):
            yield batch, self._of(batch, slice(start, start + len(batch)), number)
            start += len(batch)

    def _of(self, batch: Batch, index: slice, number: int) -> Outputs:
        if self._kept is not None:
            return moved(rows(self._kept, index), self.device)
        if self._parts is not None:
            return moved(self._parts[number], self.device)
        assert self._model is not None
        with torch.no_grad():
            return self.task.run(self._model, batch.inputs)

    def all(self) -> list[Outputs]:
        """All outputs, in pieces."""
        if self._parts is not None:
            return list(self._parts)
        return [self._kept] if self._kept is not None else [o for _, o in self.batches(self.sizes.size)]

    def part(self, units: Sequence[int]) -> "Reference":
        """The outputs of some of the examples."""
        fewer = copy.copy(self)
        fewer.examples = self.examples.part(units)
        fewer._kept = None if self._kept is None else rows(self._kept, torch.as_tensor(units, dtype=torch.long))
        fewer._parts = None if self._parts is None else [self._parts[i] for i in sorted(units)]
        return fewer

    def compare(self, model: nn.Module, place: str = "", measured: bool = True) -> Comparison:
        """``model`` beside the dense one.

        Args:
            place: of the model, in messages.
            measured: whether the metric is wanted.

        Raises:
            DataError: the model fails on the inputs.
            ScoreError: the metric fails.
        """
        metric = self.task.metric if measured else None

        def run(size: int) -> tuple[list[Tensor], list[Tensor], list[Any], list[Any]]:
            far: list[Tensor] = []
            sums: list[Tensor] = []
            shown: list[Any] = []
            labels: list[Any] = []
            with inference(model):
                for batch, dense in self.batches(size):
                    picked = self.task.picked(forward(model, batch.inputs))
                    outputs = self.task.outputs(picked, batch.inputs)
                    far.append(self.task.divergence(outputs, dense).cpu())
                    if isinstance(metric, Metric) and batch.labels is not None:
                        sums.append(_measured(metric, outputs, batch.labels, place).cpu())
                    elif metric is not None and not isinstance(metric, Metric):
                        shown.append(moved(picked, "cpu"))
                        labels.append(moved(batch.labels, "cpu"))
            return far, sums, shown, labels

        far, sums, shown, labels = _guarded(self.examples, self.sizes, run)
        divergences = torch.cat(far)
        if isinstance(metric, Metric) and sums:
            each = torch.cat(sums)
            quality = metric.value(each.sum(0), len(each))
            return Comparison(divergences, (1 - each[:, 0]).float() if metric.mean else None, quality)
        own = None if metric is None or isinstance(metric, Metric) else _called(metric, shown, labels, place)
        return Comparison(divergences, None, own)

    def blind(self) -> Chance | None:
        """What a model scores that does not look at its inputs; None where the task does not know, or outputs were not kept."""
        if self._kept is None:
            return None
        size = len(self.examples)
        some = self.part(torch.linspace(0, size - 1, min(size, LOOKED_AT)).long().tolist())
        if (constant := self.task.blind(some._kept)) is None:
            return None
        far, metric = float(self.task.divergence(constant, some._kept).mean()), self.task.metric
        if not isinstance(metric, Metric) or not self.examples.has_labels:
            return Chance(far)
        sums, start = [], 0
        for batch in some.examples.batches(self.sizes.size, "cpu"):
            part = slice(start, start := start + len(batch))
            sums.append(torch.stack([metric.sums(rows(o, part), batch.labels).sum(0) for o in (constant, some._kept)]))
        blind, dense = (metric.value(total, start) for total in torch.stack(sums).sum(0))
        return Chance(far, blind if dense > blind else None)

    def itself(self, model: nn.Module, place: str) -> Comparison:
        """The dense model's own comparison: nothing diverges."""
        found = self.compare(model, place)
        none = torch.zeros_like(found.divergences).where(found.divergences.isfinite(), found.divergences)
        return Comparison(none, found.errors, found.metric)


def _guarded(examples: Examples, sizes: BatchSize, work: Callable[[int], T]) -> T:
    try:
        return sizes.run(work)
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        raise DataError(
            "the model must accept the inputs", value=f"{type(error).__name__}: {error}", place=examples.place,
            remedy="Match their shape and type to the model's; --debug shows where it failed.",
        ) from error


def _measured(metric: Metric, outputs: Outputs, labels: Any, place: str) -> Tensor:
    try:
        return metric.sums(outputs, labels)
    except Exception as error:
        raise _metric_failed(error, place) from error


def _called(metric: Callable[[Any, Any], float], shown: list[Any], labels: list[Any], place: str) -> float:
    """A metric of the user's, on all outputs as the model returned them, in float32 at least, and all labels."""
    try:
        outputs = joined(shown)
        outputs = outputs.float() if isinstance(outputs, Tensor) and outputs.dtype in (torch.float16, torch.bfloat16) else outputs
        return float(metric(outputs, None if labels[0] is None else joined(labels)))
    except Exception as error:
        raise _metric_failed(error, place) from error


def _metric_failed(error: Exception, place: str) -> ScoreError:
    return ScoreError(
        "proxy.metric must run on outputs (n, …) and labels (n, …)", value=f"{type(error).__name__}: {error}", place=place,
        remedy="Mend the function; --debug shows where it failed.",
    )
