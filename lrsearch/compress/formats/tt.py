"""tt: the tensor train, of a kernel (Garipov et al. 2016) or of a reshaped matrix (Novikov et al. 2015)."""

from collections.abc import Sequence
from math import prod

import tensorly as tl
import torch
import torch.nn.functional as F
from tensorly.decomposition import tensor_train
from torch import Tensor

from lrsearch.compress.formats.base import Factors, Problem, Rule
from lrsearch.compress.formats.chain import ConvShapes, DecomposedChain
from lrsearch.compress.matricize import Convolution
from lrsearch.spec.formats import Rank, Shapes, register
from lrsearch.spec.layer import LayerSpec

CORES = 3  # of a tensor train: factors that rows and columns are split into


@register
class TensorTrain(DecomposedChain):
    """Kernels larger than 1 x 1: input channels, height, width and outputs, one convolution each.

    Linear layers and 1 x 1 kernels: outputs and inputs are split into three factors each, and
    core k joins the k-th of both, ``(rank[k-1], out_k, in_k, rank[k])``.
    """

    name = "tt"

    def refusal(self, layer: LayerSpec) -> str:
        if layer.groups > 1 and prod(layer.kernel) == 1:
            return "tt is not offered for grouped 1 x 1 convolutions"
        return super().refusal(layer) if prod(layer.kernel) > 1 or not layer.plain else ""

    def chained(self, layer: LayerSpec) -> bool:
        return prod(layer.kernel) > 1

    def _tensor(self, layer: LayerSpec) -> list[int]:
        """The modes of the tensor that is decomposed."""
        if prod(layer.kernel) == 1:
            return [o * i for o, i in _modes(layer)]
        return [layer.channels, *(k for k in layer.kernel if k > 1), layer.matrix_shape[1]]

    def max_rank(self, layer: LayerSpec) -> Rank:
        modes = self._tensor(layer)
        return tuple(min(prod(modes[:k]), prod(modes[k:])) for k in range(1, len(modes)))

    def rank(self, layer: LayerSpec, ratio: float) -> Rank:
        """As for all formats, but none larger than its neighbours can use."""
        rank, modes = [1, *super().rank(layer, ratio), 1], self._tensor(layer)
        for k in range(1, len(modes)):
            rank[k] = min(rank[k], rank[k - 1] * modes[k - 1])
        for k in reversed(range(1, len(modes))):
            rank[k] = min(rank[k], rank[k + 1] * modes[k])
        return tuple(rank[1:-1])

    def shapes(self, layer: LayerSpec, rank: Rank) -> Shapes:
        if prod(layer.kernel) > 1:
            return super().shapes(layer, rank)
        edges = (1, *rank, 1)
        return tuple((edges[k], o, i, edges[k + 1]) for k, (o, i) in enumerate(_modes(layer)))

    def stages(self, layer: LayerSpec, rank: Rank) -> ConvShapes:
        g, (kh, kw) = layer.groups, layer.kernel
        inner: ConvShapes = ((g * rank[1], rank[0], kh, kw),)
        if kh > 1 and kw > 1:
            inner = (g * rank[1], rank[0], kh, 1), (g * rank[2], rank[1], 1, kw)
        return (g * rank[0], layer.channels, 1, 1), *inner, (layer.rows, rank[-1], 1, 1)

    def axes(self, layer: LayerSpec) -> tuple[str, ...]:
        return ("", "h", "w", "") if min(layer.kernel) > 1 else ("", "hw", "")

    def macs(self, layer: LayerSpec, rank: Rank) -> int:
        if prod(layer.kernel) > 1:
            return super().macs(layer, rank)
        return layer.positions * min(_train_macs(self.shapes(layer, rank)), _train_macs(_reversed(self.shapes(layer, rank))))

    def compose(self, layer: LayerSpec, factors: Sequence[Tensor]) -> Tensor:
        if prod(layer.kernel) > 1:
            return super().compose(layer, factors)
        whole = factors[0][0]  # (out, in, rank)
        for core in factors[1:]:
            whole = torch.einsum("oir,rpjs->opijs", whole, core).flatten(2, 3).flatten(0, 1)
        return whole.reshape(layer.matrix_shape)

    def contract(
        self, layer: LayerSpec, x: Tensor, factors: Sequence[Tensor], conv: Rule | None, bias: Tensor | None
    ) -> Tensor:
        if prod(layer.kernel) > 1:
            return super().contract(layer, x, factors, conv, bias)
        if conv is None:
            y = _contract_train(x, factors)
            return y if bias is None else y + bias
        assert isinstance(conv, Convolution)
        x = conv.pad(x)[:, :, :: conv.stride[0], :: conv.stride[1]]
        y = _contract_train(x.movedim(1, -1), factors)
        return (y if bias is None else y + bias).movedim(-1, 1)

    def start(self, weight: Tensor, problem: Problem, rank: Rank) -> Factors:
        """For matrices plain; their whitening would mix the factors of the inputs."""
        modes = _modes(problem.layer)
        if prod(problem.layer.kernel) > 1:
            return super().start(weight, problem, rank)
        outs, ins = zip(*modes, strict=True)
        paired = weight.reshape(*outs, *ins).permute(*(axis for k in range(CORES) for axis in (k, CORES + k)))
        with tl.backend_context("pytorch"):
            cores = _train(paired.reshape([o * i for o, i in modes]), rank)
        return tuple(c.reshape(s) for c, s in zip(cores, self.shapes(problem.layer, rank), strict=True))

    def decompose(self, weight: Tensor, rank: Rank) -> Factors:
        out, channels, kh, kw = weight.shape
        kernel = [k for k in (kh, kw) if k > 1]
        cores = _train(weight.permute(1, 2, 3, 0).reshape(channels, *kernel, out), rank)
        first, *middle, last = (c.permute(2, 0, 1) for c in cores)  # (rank after, rank before, mode)
        sizes = [(kh, 1), (1, kw)] if len(kernel) == 2 else [(kh, kw)]
        inner = [c.reshape(*c.shape[:2], *size) for c, size in zip(middle, sizes, strict=True)]
        return first.transpose(1, 2)[..., None], *inner, last[0].T[:, :, None, None]


def _train(tensor: Tensor, rank: Rank) -> list[Tensor]:
    """The cores ``(rank before, mode, rank after)``; zeros fill ranks that the tensor cannot use."""
    cores = tensor_train(tensor, rank=[1, *rank, 1])
    edges = (1, *rank, 1)
    return [F.pad(c, (0, edges[k + 1] - c.shape[2], 0, 0, 0, edges[k] - c.shape[0])) for k, c in enumerate(cores)]


def _modes(layer: LayerSpec) -> list[tuple[int, int]]:
    """``(out_k, in_k)`` of the cores."""
    return list(zip(_split(layer.rows), _split(layer.channels), strict=True))


def _split(n: int) -> list[int]:
    """``CORES`` factors of ``n`` as near each other as they come, ascending."""
    factors = []
    for left in range(CORES, 1, -1):
        target = round(n ** (1 / left))
        factor = max(f for f in range(1, max(target, 1) + 1) if n % f == 0)
        factors.append(factor)
        n //= factor
    return sorted([*factors, n])


def _train_macs(shapes: Shapes) -> int:
    """Per position, contracting from the first core on."""
    done, left, total = 1, prod(s[2] for s in shapes), 0
    for before, out, inner, after in shapes:
        left //= inner
        total += done * left * before * inner * out * after
        done *= out
    return total


def _reversed(shapes: Shapes) -> Shapes:
    return tuple((after, out, inner, before) for before, out, inner, after in reversed(shapes))


def _contract_train(x: Tensor, cores: Sequence[Tensor]) -> Tensor:
    """``x`` (..., in) → (..., out), from whichever end takes fewer multiply-accumulates."""
    shapes = tuple((c.shape[0], c.shape[1], c.shape[2], c.shape[3]) for c in cores)
    ins, outs = [s[2] for s in shapes], [s[1] for s in shapes]
    backward = _train_macs(_reversed(shapes)) < _train_macs(shapes)
    t = x.reshape(prod(x.shape[:-1]), *ins)
    if backward:
        t = t.permute(0, *range(len(ins), 0, -1))
        cores = [c.permute(3, 1, 2, 0) for c in reversed(cores)]
    done, left, n = 1, prod(ins), t.shape[0]
    for core in cores:  # t is (n, done, rank, in_k, the inputs left)
        before, out, inner, after = core.shape
        left //= inner
        t = t.reshape(n, done, before * inner, left).transpose(2, 3)
        t = t @ core.permute(0, 2, 1, 3).reshape(before * inner, out * after)
        t = t.view(*t.shape[:3], out, after).permute(0, 1, 3, 4, 2)  # (n, done, out, after, left)
        done *= out
    t = t.reshape(n, *(reversed(outs) if backward else outs))
    if backward:
        t = t.permute(0, *range(len(outs), 0, -1))
    return t.reshape(*x.shape[:-1], prod(outs))
