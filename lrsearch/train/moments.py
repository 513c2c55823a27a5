"""What a polish sums up over positions: of the dense network's inputs x and the compressed one's x̂, and of channels."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lrsearch.compress.matricize import gram, row_chunks
from lrsearch.spec.layer import LayerSpec


@dataclass
class JointMoments:
    """Sums over positions, of all inputs less ``near``: float32 cannot tell a small spread beside a large mean.

    Attributes:
        gram: x̂x̂ᵀ, ``(groups, columns, columns)``.
        cross: xx̂ᵀ, likewise.
        mean: x̂, ``(groups, columns)``.
        dense_mean: x, likewise.
        near: some point near the means, likewise; None for 0, and then moments are not centred.
        count: number of positions.
    """

    gram: Tensor
    cross: Tensor
    mean: Tensor
    dense_mean: Tensor
    near: Tensor | None = None
    count: int = 0

    @classmethod
    def zero(cls, spec: LayerSpec, device: torch.device, near: Tensor | None = None) -> "JointMoments":
        gram, cross = torch.zeros(2, spec.groups, spec.columns, spec.columns, device=device)
        mean, dense_mean = torch.zeros(2, spec.groups, spec.columns, device=device)
        return cls(gram, cross, mean, dense_mean, near)

    def add(self, module: nn.Module, dense: Tensor, ours: Tensor) -> None:
        """Add the inputs x and x̂ of one call of the layer ``module``."""
        for old, new in row_chunks(module, dense.float(), ours.float()):
            if self.near is not None:
                old, new = old - self.near[:, None], new - self.near[:, None]
            gram(new, self.gram)
            self.cross.baddbmm_(old.mT, new)
            self.mean, self.dense_mean, self.count = self.mean + new.sum(1), self.dense_mean + old.sum(1), self.count + new.shape[1]

    def __add__(self, other: "JointMoments") -> "JointMoments":
        """Of both; they have the same ``near``."""
        return JointMoments(
            self.gram + other.gram, self.cross + other.cross, self.mean + other.mean,
            self.dense_mean + other.dense_mean, self.near, self.count + other.count,
        )

    def normalised(self) -> tuple[Tensor, Tensor]:
        """E[x̂x̂ᵀ] and E[xx̂ᵀ]; the covariances where there is a point near the means."""
        c, cross, mean, dense_mean = (t / max(1, self.count) for t in (self.gram, self.cross, self.mean, self.dense_mean))
        if self.near is not None:
            return c - mean[:, :, None] * mean[:, None], cross - dense_mean[:, :, None] * mean[:, None]
        return c, cross

    def missing(self, weight: Tensor, effective: Tensor) -> Tensor:
        """E[W x − effective x̂], ``(groups · rows,)``, for matrices ``(groups, rows, columns)``."""
        near = 0.0 if self.near is None else self.near
        means = (near + total / max(1, self.count) for total in (self.dense_mean, self.mean))
        return torch.sub(*(w @ mean[:, :, None] for w, mean in zip((weight, effective), means, strict=True))).flatten()


def near_mean(module: nn.Module, x: Tensor) -> Tensor:
    """The mean of what a layer ``module`` is multiplied with for the input ``x``, or for a part of it, ``(groups, columns)``."""
    (rows,) = next(row_chunks(module, x.float()))
    return rows.mean(1)


def channel_sums(x: Tensor) -> Tensor:
    """Number, sum and sum of squares of the values in each channel of ``(n, channels, ...)``, float64 ``(3, channels)``."""
    values = x.transpose(0, 1).flatten(1).double()
    return torch.stack([torch.full_like(values[:, 0], values.shape[1]), values.sum(1), values.square().sum(1)])


def mean_and_variance(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Of each channel, from :func:`channel_sums` over any number of batches."""
    count, first, second = sums
    mean = first / count
    return mean.float(), (second / count - mean.square()).clamp_min(0).float()
