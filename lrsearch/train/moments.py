"""What a polish sums up over positions: of the dense network's inputs x and the compressed one's x̂, and of channels."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lrsearch.compress.matricize import gram, row_chunks
from lrsearch.spec.layer import LayerSpec


@dataclass
class JointMoments:
    """Sums over positions.

    Attributes:
        gram: x̂x̂ᵀ, ``(groups, columns, columns)``.
        cross: xx̂ᵀ, likewise.
        mean: x̂, ``(groups, columns)``.
        dense_mean: x, likewise.
        count: number of positions.
    """

    gram: Tensor
    cross: Tensor
    mean: Tensor
    dense_mean: Tensor
    count: int = 0

    @classmethod
    def zero(cls, spec: LayerSpec, device: torch.device) -> "JointMoments":
        square = torch.zeros(2, spec.groups, spec.columns, spec.columns, device=device)
        flat = torch.zeros(2, spec.groups, spec.columns, device=device)
        return cls(*square, *flat)

    def add(self, module: nn.Module, dense: Tensor, ours: Tensor) -> None:
        """Add the inputs x and x̂ of one call of the layer ``module``."""
        for old, new in row_chunks(module, dense.float(), ours.float()):
            gram(new, self.gram)
            self.cross.baddbmm_(old.mT, new)
            self.mean, self.dense_mean, self.count = self.mean + new.sum(1), self.dense_mean + old.sum(1), self.count + new.shape[1]

    def __add__(self, other: "JointMoments") -> "JointMoments":
        return JointMoments(
            self.gram + other.gram, self.cross + other.cross, self.mean + other.mean,
            self.dense_mean + other.dense_mean, self.count + other.count,
        )

    def normalised(self, centred: bool) -> tuple[Tensor, Tensor]:
        """E[x̂x̂ᵀ] and E[xx̂ᵀ], or the covariances."""
        c, cross, mean, dense_mean = (t / max(1, self.count) for t in (self.gram, self.cross, self.mean, self.dense_mean))
        if centred:
            return c - mean[:, :, None] * mean[:, None], cross - dense_mean[:, :, None] * mean[:, None]
        return c, cross

    def missing(self, weight: Tensor, effective: Tensor) -> Tensor:
        """E[W x − effective x̂], ``(groups · rows,)``, for matrices ``(groups, rows, columns)``."""
        return (weight @ self.dense_mean[:, :, None] - effective @ self.mean[:, :, None]).flatten() / max(1, self.count)


def channel_sums(x: Tensor) -> Tensor:
    """Number, sum and sum of squares of the values in each channel of ``(n, channels, ...)``, float64 ``(3, channels)``."""
    values = x.transpose(0, 1).flatten(1).double()
    return torch.stack([torch.full_like(values[:, 0], values.shape[1]), values.sum(1), values.square().sum(1)])


def mean_and_variance(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Of each channel, from :func:`channel_sums` over any number of batches."""
    count, first, second = sums
    mean = first / count
    return mean.float(), (second / count - mean.square()).clamp_min(0).float()
