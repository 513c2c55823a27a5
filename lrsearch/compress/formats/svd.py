"""svd and spatial-svd: two factors, the truncated SVD of one matricisation of the weight."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lrsearch.compress.formats.base import Factors, Problem, leading
from lrsearch.compress.formats.chain import Chain, ConvShapes, DecomposedChain
from lrsearch.compress.matricize import times
from lrsearch.spec.formats import Rank, register
from lrsearch.spec.layer import LayerSpec

POWER_STEPS = 1  # of subspace iteration


@register
class Svd(Chain):
    """A k x k convolution to ``rank`` channels, then a 1 x 1 (for linear layers, two linear maps)."""

    name = "svd"

    def refusal(self, layer: LayerSpec) -> str:
        return "depthwise convolutions have no low-rank part" if layer.depthwise else ""

    def max_rank(self, layer: LayerSpec) -> Rank:
        _, rows, columns = layer.matrix_shape
        return (min(rows, columns),)

    def stages(self, layer: LayerSpec, rank: Rank) -> ConvShapes:
        return (layer.groups * rank[0], layer.channels, *layer.kernel), (layer.rows, rank[0], 1, 1)

    def axes(self, layer: LayerSpec) -> tuple[str, ...]:
        return ("", "hw") if layer.transposed else ("hw", "")

    def start(self, weight: Tensor, problem: Problem, rank: Rank) -> Factors:
        """The optimum in closed form.

        The truncated SVD of W C^½, un-whitened (SVD-LLM, Wang et al. 2024), equals U Uᵀ W with
        U the leading eigenvectors of W C Wᵀ, so C is never inverted.
        """
        u = problem.basis if weight is problem.weight else leading(weight, problem)
        return self._projected(weight, u[:, :, : rank[0]], problem.layer)

    def fit(self, weight: Tensor, problem: Problem, rank: Rank, start: Factors | None = None) -> Factors:
        """The optimum, or, from ``start``, a step of subspace iteration towards it."""
        if start is None:
            return self.start(weight, problem, rank)
        u = start[1].view(*weight.shape[:2], rank[0])
        for _ in range(POWER_STEPS):
            u = torch.linalg.qr(weight @ problem.times(u.mT @ weight).mT).Q
        return self._projected(weight, u, problem.layer)

    def times(self, layer: LayerSpec, factors: Sequence[Tensor], matrix: Tensor) -> Tensor:
        """Through the rank, without composing L."""
        first, second = (f.flatten(1) for f in factors)
        return second.view(layer.groups, -1, second.shape[1]) @ times(first.view(layer.groups, second.shape[1], -1), matrix)

    def _projected(self, weight: Tensor, u: Tensor, layer: LayerSpec) -> Factors:
        """U Uᵀ W as two factors of equal norm per rank; ``u`` (groups, rows, rank) is orthonormal."""
        right = u.mT @ weight
        size = right.norm(dim=2).clamp_min(1e-12).sqrt()
        factors = (right / size[:, :, None]).flatten(0, 1), (u * size[:, None, :]).flatten(0, 1)
        return tuple(f.reshape(s) for f, s in zip(factors, self.shapes(layer, (u.shape[2],)), strict=True))


@register
class SpatialSvd(DecomposedChain):
    """A k x 1 convolution to ``rank`` channels, then a 1 x k (Jaderberg et al. 2014, scheme 2)."""

    name = "spatial-svd"

    def refusal(self, layer: LayerSpec) -> str:
        flat = min(layer.kernel) == 1
        return "spatial-svd needs a kernel of two dimensions; use svd" if flat and not layer.depthwise else super().refusal(layer)

    def max_rank(self, layer: LayerSpec) -> Rank:
        (kh, kw), (_, rows, _) = layer.kernel, layer.matrix_shape
        return (min(layer.channels * kh, rows * kw),)

    def stages(self, layer: LayerSpec, rank: Rank) -> ConvShapes:
        kh, kw = layer.kernel
        return (layer.groups * rank[0], layer.channels, kh, 1), (layer.rows, rank[0], 1, kw)

    def axes(self, layer: LayerSpec) -> tuple[str, ...]:
        return "h", "w"

    def decompose(self, weight: Tensor, rank: Rank) -> Factors:
        out, channels, kh, kw = weight.shape
        u, s, v = torch.linalg.svd(weight.permute(1, 2, 0, 3).reshape(channels * kh, out * kw), full_matrices=False)
        u, s, v = u[:, : rank[0]], s[: rank[0]].sqrt(), v[: rank[0]]
        first = (u * s).T.reshape(-1, channels, kh, 1)
        return first, (s[:, None] * v).reshape(-1, out, 1, kw).transpose(0, 1)
