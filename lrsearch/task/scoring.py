"""Model and examples → logits, KL to the dense model, task metric."""

from collections.abc import Callable
from math import isfinite

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrsearch.errors import DataError, ModelError, ScoreError
from lrsearch.spec.score import Score
from lrsearch.task.data import Examples
from lrsearch.task.forward import inference
from lrsearch.task.memory import BatchSize

Metric = Callable[[Tensor, Tensor], float]


def top1(outputs: Tensor, labels: Tensor) -> float:
    """Fraction of rows of ``outputs`` (n, classes) whose largest entry is the label (n,)."""
    return float((outputs.argmax(-1) == labels).float().mean())


def predict(model: nn.Module, examples: Examples, batch: int | BatchSize, device: torch.device | str = "cpu") -> Tensor:
    """Outputs ``(n, classes)`` of ``model`` in eval mode, on the CPU.

    Args:
        batch: examples at a time; fewer where so many do not fit into memory.

    Raises:
        DataError: the model fails on the inputs.
        ModelError: the outputs are not one row of logits per example, or not even one example fits into memory.
    """
    def run(size: int) -> list[Tensor]:
        with inference(model):
            return [model(x) for x, _ in examples.batches(size, device)]

    sizes = batch if isinstance(batch, BatchSize) else BatchSize(batch)
    try:
        outputs = sizes.run(run)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise DataError(
            "the model must accept the inputs", value=f"{type(error).__name__}: {error}", place=f"data.{examples.role}",
            remedy="Match their shape and type to the model's; --debug shows where it failed.",
        ) from error
    if not all(isinstance(o, Tensor) and o.dim() == 2 and o.is_floating_point() for o in outputs):
        shown = tuple(outputs[0].shape) if isinstance(outputs[0], Tensor) else type(outputs[0]).__name__
        raise ModelError(
            "the model must return logits of shape (batch, classes)", value=shown, place=type(model).__name__,
            remedy="Wrap the model so that it returns the logits alone.",
        )
    return torch.cat(outputs).float().cpu()


def check_labels(logits: Tensor, examples: Examples) -> None:
    """Labels must be class indices of ``logits`` (n, classes).

    Raises:
        DataError: they are not.
    """
    labels = examples.labels()
    whole = not labels.is_floating_point() and labels.dim() == 1
    if not whole or int(labels.min()) < 0 or int(labels.max()) >= logits.shape[1]:
        raise DataError(
            f"labels must be class indices below {logits.shape[1]}, the model's number of outputs",
            value=f"{labels.dtype} from {labels.min()} to {labels.max()}, shape {tuple(labels.shape)}",
            place=f"data.{examples.role}", remedy="Match the model's head to the data, or map the labels.",
        )


def divergence(outputs: Tensor, reference: Tensor) -> Tensor:
    """KL(reference ‖ outputs) per example, in nats; both are logits ``(n, classes)``."""
    return F.kl_div(outputs.log_softmax(-1), reference.log_softmax(-1), log_target=True, reduction="none").sum(-1)


def score(outputs: Tensor, reference: Tensor, labels: Tensor, metric: Metric, fidelity: int, batchnorm: bool, place: str) -> Score:
    """Compare ``outputs`` with the dense model's ``reference`` and the labels.

    Raises:
        ScoreError: the metric fails, or the result is not finite.
    """
    try:
        quality = float(metric(outputs, labels))
    except Exception as error:
        raise ScoreError(
            "proxy.metric must run on outputs (n, classes) and labels (n,)", value=f"{type(error).__name__}: {error}",
            place=place, remedy="Mend the function; --debug shows where it failed.",
        ) from error
    kl = divergence(outputs, reference)
    if not bool(kl.isfinite().all()) or not isfinite(quality):
        raise ScoreError(
            "outputs and metric must be finite", value=f"metric {quality}, mean KL {float(kl.mean())}", place=place,
            remedy="Lower proxy.finetune.learning_rate, or exclude the layer that overflows.",
        )
    stderr = float(kl.std() / len(kl) ** 0.5) if len(kl) > 1 else 0.0
    binomial = (quality * (1 - quality) / len(kl)) ** 0.5 if metric is top1 else None
    return Score(quality, max(0.0, float(kl.mean())), stderr, fidelity, batchnorm, binomial)


def losses(outputs: Tensor, reference: Tensor, labels: Tensor, objective: str) -> Tensor:
    """What each example adds to the mean that ``objective`` compares, ``(n,)``: its KL divergence, or for ``metric`` whether top-1 errs."""
    return divergence(outputs, reference) if objective == "kl" else (outputs.argmax(-1) != labels).float()
