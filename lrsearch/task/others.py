"""Tasks that do not choose among classes: yes or no, numbers, embeddings."""

from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from lrsearch.errors import DataError
from lrsearch.task.base import Outputs, Probable, Task, copy_of
from lrsearch.task.forward import Inputs
from lrsearch.task.metrics import R2, BinaryAccuracy
from lrsearch.task.registry import register
from lrsearch.task.softmax import TINY, attention_mask, averaged

OWN_SCALE = 64  # values up to which each is compared in units of its own variance; more are like pixels and share one


@register
class Binary(Probable):
    """Yes or no, once (one logit) or for several labels: logits ``(n,)`` or ``(n, labels)``, labels 0 or 1 of the same shape.

    The divergence is that of the Bernoulli distributions, in nats, summed over the labels.

    Args:
        probabilities: the model ends in a sigmoid.
    """

    name, unit = "binary", "nats"
    metric = BinaryAccuracy()

    def outputs(self, picked: Any, inputs: Inputs) -> Tensor:
        values: Tensor = super().outputs(picked, inputs)
        values = values.flatten(1) if values.dim() > 1 else values[:, None]
        return values.clamp(TINY, 1 - 1e-7).logit() if self.probabilities else values

    def divergence(self, outputs: Tensor, reference: Tensor) -> Tensor:
        p = reference.sigmoid()
        yes = p * (F.logsigmoid(reference) - F.logsigmoid(outputs))
        no = (1 - p) * (F.logsigmoid(-reference) - F.logsigmoid(-outputs))
        return (yes + no).sum(1)

    def loss(self, outputs: Tensor, reference: Tensor, temperature: float) -> Tensor:
        return self.divergence(outputs / temperature, reference / temperature).mean() * temperature**2

    def supervised(self, outputs: Tensor, labels: Any) -> Tensor:
        return F.binary_cross_entropy_with_logits(outputs, labels.reshape(outputs.shape).to(outputs))

    def projections(self, outputs: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
        """v = √(p (1 − p)) ε for random signs ε."""
        p = (outputs / temperature).sigmoid()
        return (p * (1 - p)).sqrt() * (2 * torch.randint(2, p.shape, generator=generator).to(p) - 1)

    def check_labels(self, outputs: Outputs, labels: Any, place: str) -> None:
        ok = isinstance(labels, Tensor) and labels.numel() == outputs.numel() and bool(((labels == 0) | (labels == 1)).all())
        if not ok:
            shown = f"shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
            raise DataError("labels must be 0 or 1, one for each output", value=shown, place=place, remedy="Map them, or name a task.")


@register
class Regression(Task):
    """Numbers: outputs of any shape, labels of the same.

    The divergence is the squared error, in units of the variance of the dense model's outputs over the calibration data, mean over the
    values. Up to 64 values have a unit each; more share the mean variance, as pixels do.
    """

    name, unit = "regression", "variances"
    metric = R2()
    variance: Tensor | float = 1.0

    def fitted(self, reference: Sequence[Outputs]) -> Self:
        values = torch.cat([o.reshape(len(o), -1).double() for o in reference]) if len({o[0].shape for o in reference}) == 1 else None
        own = copy_of(self)
        if values is None:
            own.variance = float(torch.cat([o.flatten().double() for o in reference]).var(correction=0)) or 1.0
            return own
        variance = values.var(0, correction=0)
        mean = float(variance.mean()) or 1.0
        own.variance = variance.where(variance > TINY * mean, mean).float() if values.shape[1] <= OWN_SCALE else mean
        return own

    @property
    def learned(self) -> Any:
        return self.variance.tolist() if isinstance(self.variance, Tensor) else self.variance

    def with_learned(self, learned: Any) -> Self:
        own = copy_of(self)
        own.variance = torch.tensor(learned) if isinstance(learned, list) else float(learned)
        return own

    def _scaled(self, values: Tensor) -> Tensor:
        """``(n, values)`` in units of their standard deviations, times the root of their weight in the mean."""
        flat = values.reshape(len(values), -1)
        scale = self.variance.to(flat) if isinstance(self.variance, Tensor) else self.variance
        return flat / (scale * flat.shape[1]) ** 0.5

    def divergence(self, outputs: Tensor, reference: Tensor) -> Tensor:
        return self._scaled(outputs - reference).square().sum(1)

    def supervised(self, outputs: Tensor, labels: Any) -> Tensor:
        return self._scaled(outputs - labels.reshape(outputs.shape).to(outputs)).square().sum(1).mean()

    def projections(self, outputs: Tensor, temperature: float, generator: torch.Generator) -> Tensor:  # noqa: ARG002
        signs = 2 * torch.randint(2, outputs.shape, generator=generator).to(outputs) - 1
        return 2**0.5 * self._scaled(signs).view_as(outputs)

    def check_labels(self, outputs: Outputs, labels: Any, place: str) -> None:
        if not isinstance(labels, Tensor) or labels.numel() != outputs.numel():
            shown = f"shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
            raise DataError(f"labels must be of the outputs' shape {tuple(outputs.shape)}", value=shown, place=place,
                            remedy="Match them, or name another task.")


@register
class Embedding(Task):
    """Vectors whose direction counts: ``(n, size)``, or one for each token ``(n, tokens, size)``.

    The divergence is 1 − cosine, mean over the tokens that the keyword input ``attention_mask`` names.
    """

    name = "embedding"

    def outputs(self, picked: Any, inputs: Inputs) -> Outputs:
        values = super().outputs(picked, inputs)
        values = values[:, None] if values.dim() == 2 else values.reshape(len(values), -1, values.shape[-1])
        return {"values": values, "mask": attention_mask(picked, inputs) if picked.dim() == 3 else None}

    def divergence(self, outputs: Outputs, reference: Outputs) -> Tensor:
        return averaged(1 - F.cosine_similarity(outputs["values"], reference["values"], -1), outputs["mask"])

    def projections(self, outputs: Outputs, temperature: float, generator: torch.Generator) -> Outputs:  # noqa: ARG002
        """v = (ε − r rᵀε) / |x| for random signs ε, r = x / |x|: the Hessian of 1 − cosine at x is (I − r rᵀ) / |x|²."""
        x = outputs["values"]
        size = x.norm(dim=-1, keepdim=True).clamp_min(TINY)
        direction = x / size
        signs = 2 * torch.randint(2, x.shape, generator=generator).to(x) - 1
        v = (signs - direction * (signs * direction).sum(-1, keepdim=True)) / size
        mask = outputs["mask"]
        share = x.shape[1] ** -0.5 if mask is None else ((mask / mask.sum(1, keepdim=True).clamp_min(1)) ** 0.5)[..., None].to(x)
        return {"values": v * share, "mask": None}
