"""Chain: formats that are a sequence of smaller convolutions."""

from abc import abstractmethod
from collections.abc import Sequence
from math import prod

import tensorly as tl
import torch
import torch.nn.functional as F
from torch import Tensor

from lrsearch.compress.formats.base import Factors, LowRank, Problem, Rule
from lrsearch.compress.linalg import roots
from lrsearch.spec.formats import Rank, Shapes
from lrsearch.spec.layer import LayerSpec

ConvShapes = tuple[tuple[int, int, int, int], ...]


class Chain(LowRank):
    """Convolutions one after another; each group of a grouped layer has a chain of its own."""

    @abstractmethod
    def stages(self, layer: LayerSpec, rank: Rank) -> ConvShapes:
        """``(out, in/groups, kh, kw)`` of each convolution, first to last."""

    @abstractmethod
    def axes(self, layer: LayerSpec) -> tuple[str, ...]:
        """The axes (``h``, ``w``) along which each of them pads, strides and dilates."""

    def chained(self, layer: LayerSpec) -> bool:
        return True

    def refusal(self, layer: LayerSpec) -> str:
        if layer.depthwise:
            return "depthwise convolutions have no low-rank part"
        if not layer.plain:
            return f"{self.name} is not offered for 3-D and transposed convolutions; use svd"
        return "" if prod(layer.kernel) > 1 else f"{self.name} needs a kernel larger than 1 x 1; use svd"

    def shapes(self, layer: LayerSpec, rank: Rank) -> Shapes:
        return tuple(s[:2] if layer.kind == "linear" else s for s in self.stages(layer, rank))

    def macs(self, layer: LayerSpec, rank: Rank) -> int:
        positions = {"": layer.input_positions, "h": layer.half_positions, "hw": layer.positions}
        done, total = "", 0
        for shape, axes in zip(self.stages(layer, rank), self.axes(layer), strict=True):
            done += axes
            total += prod(shape) * positions[done]
        return total

    def compose(self, layer: LayerSpec, factors: Sequence[Tensor]) -> Tensor:
        g, first = layer.groups, factors[0]
        whole = first.reshape(g, first.shape[0] // g, first.shape[1], *kernel(first))
        for f in factors[1:]:
            stage = f.reshape(g, f.shape[0] // g, f.shape[1], *kernel(f))
            if stage.shape[2] == 1 and stage.shape[1] == whole.shape[1]:  # depthwise
                whole = whole * stage
            else:
                whole = torch.einsum("gomab,gmicd->goiacbd", stage, whole).flatten(3, 4).flatten(4, 5)
        return whole.reshape(layer.matrix_shape)

    def contract(
        self, layer: LayerSpec, x: Tensor, factors: Sequence[Tensor], conv: Rule | None, bias: Tensor | None
    ) -> Tensor:
        last = len(factors) - 1
        for i, (f, axes) in enumerate(zip(factors, self.axes(layer), strict=True)):
            b = bias if i == last else None
            x = F.linear(x, f, b) if conv is None else conv(x, f, b, x.shape[1] // f.shape[1], axes)
        return x


class DecomposedChain(Chain):
    """A chain whose fit starts from a plain decomposition of the weight."""

    def start(self, weight: Tensor, problem: Problem, rank: Rank) -> Factors:
        """Decompose the weight, whitened along its input channels; the refinement then sees the whole Gram matrix."""
        layer = problem.layer
        g, (kh, kw) = layer.groups, layer.kernel
        part = layer.channels // layer.blocks
        blocks = problem.gram.view(g, layer.blocks, part, kh * kw, part, kh * kw).diagonal(dim1=3, dim2=5).mean(-1)
        channel_gram = torch.stack([torch.block_diag(*group) for group in blocks])  # type: ignore[no-untyped-call]
        root, inverse = roots(channel_gram)
        whitened = torch.einsum("goikl,gij->gojkl", weight.view(g, -1, layer.channels, kh, kw), root)
        if not bool(whitened.any()):
            return tuple(weight.new_zeros(s) for s in self.shapes(layer, rank))
        with tl.backend_context("pytorch"):
            groups = [self.decompose(w, rank) for w in whitened]
        stacked = [torch.cat(parts) for parts in zip(*groups, strict=True)]
        first = stacked[0].view(g, -1, *stacked[0].shape[1:])
        stacked[0] = torch.einsum("grikl,gij->grjkl", first, inverse).flatten(0, 1)
        return tuple(f.reshape(s) for f, s in zip(stacked, self.shapes(layer, rank), strict=True))

    @abstractmethod
    def decompose(self, weight: Tensor, rank: Rank) -> Factors:
        """The plain decomposition of ``(out, in, kh, kw)``, the weights of one group's stages."""


def kernel(factor: Tensor) -> tuple[int, int]:
    """Height and width of a stage's kernel; 1 and 1 of a linear one."""
    return (factor.shape[2], factor.shape[3]) if factor.dim() == 4 else (1, 1)
