"""Tasks whose outputs are logits over classes: of the example, of each position of an image, of each token."""

from abc import abstractmethod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lrsearch.errors import DataError, ModelError
from lrsearch.task.base import Outputs, Probable
from lrsearch.task.forward import Inputs
from lrsearch.task.metrics import IGNORED, MeanIoU, TokenAccuracy, Top1, class_indices
from lrsearch.task.registry import register

TINY = 1e-12  # probabilities below have no logarithm in float32 worth keeping
CLOSE = 1e-3  # from 1, of sums of probabilities and lengths of unit vectors; float16 rounds to less
ATTENTION_MASK = "attention_mask"  # keyword of Hugging Face models: 1 for tokens, 0 for padding


class Softmax(Probable):
    """Outputs are ``values`` (n, positions, classes) and ``mask`` (n, positions), True where a position counts, or None.

    The divergence is the Kullback-Leibler divergence of the class probabilities, in nats, mean over the positions.

    Args:
        probabilities: the model ends in a softmax: its outputs are probabilities, whose logarithms serve as logits.
    """

    unit = "nats"
    axis: ClassVar[int]
    about: ClassVar[str]

    def outputs(self, picked: Any, inputs: Inputs) -> Outputs:
        if not isinstance(picked, Tensor) or not picked.is_floating_point() or not self.suits(picked):
            shown = tuple(picked.shape) if isinstance(picked, Tensor) else type(picked).__name__
            raise ModelError(
                f"the model must return {self.about}", value=shown, place=f"task {self.name}",
                remedy="Name the output that counts (output: NAME), another task, or wrap the model.",
            )
        values = picked if picked.dtype == torch.float64 else picked.float()
        values = values.movedim(self.axis, -1).reshape(len(values), -1, values.shape[self.axis])
        return {"values": values.clamp_min(TINY).log() if self.probabilities else values, "mask": self.mask(picked, inputs)}

    @abstractmethod
    def suits(self, picked: Tensor) -> bool:
        """Whether ``picked`` has as many axes as the task needs."""

    def mask(self, picked: Tensor, inputs: Inputs) -> Tensor | None:  # noqa: ARG002
        """Which positions count; all by default."""
        return None

    def divergence(self, outputs: Outputs, reference: Outputs) -> Tensor:
        far = F.kl_div(outputs["values"].log_softmax(-1), reference["values"].log_softmax(-1), log_target=True, reduction="none").sum(-1)
        return averaged(far, outputs["mask"])

    def blind(self, reference: Outputs) -> Outputs | None:
        mean = reference["values"].softmax(-1).flatten(0, -2).mean(0).clamp_min(TINY).log()
        return {**reference, "values": mean.expand_as(reference["values"])}

    def loss(self, outputs: Outputs, reference: Outputs, temperature: float) -> Tensor:
        """T² times the divergence of the softened distributions (Hinton et al. 2015)."""
        soft, hard = ({**o, "values": o["values"] / temperature} for o in (outputs, reference))
        return self.divergence(soft, hard).mean() * temperature**2

    def supervised(self, outputs: Outputs, labels: Any) -> Tensor:
        one = outputs["values"].shape[1] == 1
        wanted = class_indices(labels, outputs["values"].shape[-1])[:, None] if one else labels.flatten(1)
        return F.cross_entropy(outputs["values"].transpose(1, 2), wanted.long(), ignore_index=IGNORED)

    def projections(self, outputs: Outputs, temperature: float, generator: torch.Generator) -> Outputs:
        """v = (diag √p − p √pᵀ) ε for random signs ε, p being the softmax at ``temperature``."""
        logits = outputs["values"]
        p = (logits / temperature).softmax(-1)
        signs = 2 * torch.randint(2, p.shape, generator=generator).to(p) - 1
        spread = p.sqrt() * signs
        directions = spread - p * spread.sum(-1, keepdim=True)
        return {"values": directions * _share(directions, outputs["mask"]), "mask": None}


def averaged(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the positions that count, ``(n, positions)`` → ``(n,)``."""
    return values.mean(1) if mask is None else (values * mask).sum(1) / mask.sum(1).clamp_min(1)


def _share(directions: Tensor, mask: Tensor | None) -> Tensor | float:
    """The root of each position's weight in the mean."""
    if mask is None:
        return float(directions.shape[1] ** -0.5)
    return ((mask / mask.sum(1, keepdim=True).clamp_min(1)) ** 0.5)[..., None].to(directions)


@register
class Classification(Softmax):
    """One class for each example: logits or probabilities ``(n, classes)``."""

    name, axis, about = "classification", -1, "logits of shape (batch, classes)"
    metric = Top1()

    def suits(self, picked: Tensor) -> bool:
        return picked.dim() == 2

    def check_labels(self, outputs: Outputs, labels: Any, place: str) -> None:
        classes = outputs["values"].shape[-1]
        onehot = isinstance(labels, Tensor) and labels.dim() == 2 and labels.shape[1] == classes
        if onehot and bool((labels.sum(1) == 1).all()) and bool((labels >= 0).all()):
            return
        shaped = isinstance(labels, Tensor) and not labels.is_floating_point() and (labels.dim() == 1 or labels.shape[1:] == (1,))
        if not shaped or int(labels.min()) < 0 or int(labels.max()) >= classes:
            shown = type(labels).__name__
            if isinstance(labels, Tensor):
                shown = f"{labels.dtype} from {labels.min()} to {labels.max()}, shape {tuple(labels.shape)}"
            raise DataError(
                f"labels must be class indices below {classes}, the model's number of outputs", value=shown, place=place,
                remedy="Match the model's head to the data, map the labels, or name another task.",
            )


@register
class Segmentation(Softmax):
    """One class for each position: logits or probabilities ``(n, classes, *positions)``; labels ``(n, *positions)``."""

    name, axis, about = "segmentation", 1, "logits of shape (batch, classes, positions…)"
    metric = MeanIoU()

    def suits(self, picked: Tensor) -> bool:
        return picked.dim() > 2

    def check_labels(self, outputs: Outputs, labels: Any, place: str) -> None:
        _check_positions(outputs, labels, place)


@register
class Tokens(Softmax):
    """One class for each token: logits ``(n, tokens, classes)``; the keyword input ``attention_mask`` says which count."""

    name, axis, about = "tokens", -1, "logits of shape (batch, tokens, classes)"
    metric = TokenAccuracy()

    def suits(self, picked: Tensor) -> bool:
        return picked.dim() == 3

    def mask(self, picked: Tensor, inputs: Inputs) -> Tensor | None:
        return attention_mask(picked, inputs)

    def check_labels(self, outputs: Outputs, labels: Any, place: str) -> None:
        _check_positions(outputs, labels, place)


def attention_mask(picked: Tensor, inputs: Inputs) -> Tensor | None:
    """Which tokens are no padding, ``(n, tokens)``, if the inputs say so."""
    mask = inputs.get(ATTENTION_MASK) if isinstance(inputs, dict) else None
    return mask.bool() if isinstance(mask, Tensor) and mask.shape == picked.shape[:2] else None


def _check_positions(outputs: Outputs, labels: Any, place: str) -> None:
    n, positions, classes = outputs["values"].shape
    if not isinstance(labels, Tensor) or labels.is_floating_point() or len(labels) != n or labels.numel() != n * positions:
        shown = f"{labels.dtype}, shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise DataError(
            f"labels must be class indices, one for each of the {positions} positions", value=shown, place=place,
            remedy=f"Give integers below {classes}; {IGNORED} does not count.",
        )


def within_one(o: Tensor) -> bool:
    """Whether all values are between 0 and 1."""
    return bool((o >= 0).all()) and bool((o <= 1).all())


def sums_to_one(o: Tensor, axis: int) -> bool:
    """Whether ``o`` holds probabilities along ``axis``."""
    return within_one(o) and bool((o.float().sum(axis) - 1).abs().max() < CLOSE)
