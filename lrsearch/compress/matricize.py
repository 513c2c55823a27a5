"""A layer's weight and inputs as matrices: weight (groups, rows, columns), inputs (groups, n, columns).

1-D convolutions are 2-D ones of height 1 throughout.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from timm.layers.padding import pad_same
from torch import Tensor, nn

from lrsearch.compress.nd_convolution import NdConv, nd_rows
from lrsearch.spec.layer import LayerSpec

Pair = tuple[int, int]
Conv = nn.Conv1d | nn.Conv2d
ROWS_CHUNK = 2**22  # values; larger buffers are fresh pages of memory at every call


def to_matrix(weight: Tensor, layer: LayerSpec) -> Tensor:
    """The layer's weight → ``(groups, rows/groups, columns)``; a view where possible."""
    matrix = weight.reshape(layer.groups, weight.shape[0] // layer.groups, -1)
    return matrix.mT.contiguous() if layer.transposed else matrix


def to_weight(matrix: Tensor, layer: LayerSpec) -> Tensor:
    """Inverse of :func:`to_matrix`."""
    if layer.transposed:
        matrix = matrix.reshape(layer.matrix_shape).mT
    return matrix.reshape(layer.weight_shape)


def times(x: Tensor, gram: Tensor) -> Tensor:
    """``x`` (..., groups, n, columns) times a matrix for each group, which may be in blocks: ``(groups * blocks, k, k)``."""
    size = gram.shape[-1]
    if size == x.shape[-1]:
        return x @ gram
    blocks = x.reshape(*x.shape[:-1], -1, size).transpose(-2, -3)  # (..., groups, blocks, n, k)
    product: Tensor = blocks @ gram.view(*blocks.shape[-4:-2], size, size)
    return product.transpose(-2, -3).flatten(-2)


@dataclass(frozen=True)
class Convolution:
    """How a layer pads, strides and dilates, also along one axis alone.

    ``amounts`` are those of ``torch.nn.functional.pad``: left, right, top, bottom; ``same`` is
    TensorFlow's rule, which depends on the input's size.
    """

    kernel: Pair
    stride: Pair
    dilation: Pair
    amounts: tuple[int, int, int, int]
    mode: str
    same: bool

    @classmethod
    def of(cls, conv: Conv) -> "Convolution":
        def pair(value: tuple[int, ...]) -> Pair:
            return (1, 1, *value)[-2], value[-1]

        padding: list[int] = conv._reversed_padding_repeated_twice
        if conv.padding_mode == "zeros" and not isinstance(conv.padding, str):  # as the layer does, which may have changed since
            padding = [p for p in reversed(conv.padding) for _ in range(2)]
        left, right, top, bottom = (*padding, 0, 0)[:4]
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        same = isinstance(conv, Conv2dSame)
        return cls(pair(tuple(conv.weight.shape[2:])), pair(conv.stride), pair(conv.dilation), (left, right, top, bottom), mode, same)

    def pad(self, x: Tensor, axes: str = "hw") -> Tensor:
        """``x`` (n, in, h, w), padded along ``axes``."""
        if self.same:
            (kernel, stride, dilation) = (self.along(axes, v) for v in (self.kernel, self.stride, self.dilation))
            padded: Tensor = pad_same(x, list(kernel), list(stride), list(dilation))
            return padded
        amounts = tuple(a if axis in axes else 0 for a, axis in zip(self.amounts, "wwhh", strict=True))
        return F.pad(x, amounts, mode=self.mode) if any(amounts) else x

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None, groups: int = 1, axes: str = "hw") -> Tensor:
        """Convolve ``x`` (n, in, h, w) with ``weight`` (out, in/groups, kh, kw), striding along ``axes`` alone."""
        padding = self.symmetric(axes)
        if padding is None:
            x = self.pad(x, axes)
        return F.conv2d(x, weight, bias, self.along(axes, self.stride), padding or 0, self.along(axes, self.dilation), groups)

    def size(self, high: int, wide: int) -> tuple[int, int]:
        """Height and width of the output for an input of ``high`` x ``wide``."""
        left, right, top, bottom = self.amounts
        if self.same:
            return -(-high // self.stride[0]), -(-wide // self.stride[1])
        padded, reach = (high + top + bottom, wide + left + right), [d * (k - 1) for d, k in zip(self.dilation, self.kernel, strict=True)]
        h, w = ((p - r - 1) // s + 1 for p, r, s in zip(padded, reach, self.stride, strict=True))
        return h, w

    def symmetric(self, axes: str = "hw") -> Pair | None:
        """The padding along ``axes`` as a convolution takes it; None if that cannot express it."""
        if not axes:
            return 0, 0
        left, right, top, bottom = self.amounts
        if self.mode != "constant" or self.same or left != right or top != bottom:
            return None
        return top if "h" in axes else 0, left if "w" in axes else 0

    @staticmethod
    def along(axes: str, value: Pair) -> Pair:
        """``value`` on the axes named, 1 on the others."""
        return value[0] if "h" in axes else 1, value[1] if "w" in axes else 1


def as_image(x: Tensor, dims: int) -> Tensor:
    """The input of a ``dims``-dimensional convolution, with or without a batch → ``(n, in, h, w)``."""
    x = x if x.dim() == dims + 2 else x[None]
    return x if dims == 2 else x[:, :, None]


def input_rows(module: nn.Module, x: Tensor) -> Tensor:
    """What the rows of the weight matrix are multiplied with.

    Args:
        module: a Linear or a convolution of any kind.
        x: its input, ``(..., in)`` or ``([n,] in, [[d,] h,] w)``.

    Returns:
        ``(groups, positions, columns)``; for convolutions the im2col rows of each group.
    """
    if isinstance(module, nn.Linear):
        return x.reshape(1, -1, x.shape[-1])
    if isinstance(module, NdConv):
        return nd_rows(module, x)
    assert isinstance(module, Conv)
    conv, g = Convolution.of(module), module.groups
    x = conv.pad(as_image(x, len(module.kernel_size)))
    (kh, kw), (sh, sw), (dh, dw) = conv.kernel, conv.stride, conv.dilation
    x = x.unfold(2, dh * (kh - 1) + 1, sh)[..., ::dh].unfold(3, dw * (kw - 1) + 1, sw)[..., ::dw]
    n, channels, h, w = x.shape[:4]
    x = x.reshape(n, g, channels // g, h, w, kh, kw).permute(1, 2, 5, 6, 0, 3, 4)
    return x.reshape(g, -1, n * h * w).mT  # so laid out, the copy moves whole rows of the image


def row_chunks(module: nn.Module, *inputs: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """:func:`input_rows` of each of several inputs of one shape, a few examples at a time."""
    values = inputs[0][:1].numel() * (prod(module.kernel_size) if isinstance(module, Conv | nn.Conv3d) else 1)
    for parts in zip(*(torch.split(x, max(1, ROWS_CHUNK // max(1, values))) for x in inputs), strict=True):
        yield tuple(input_rows(module, part) for part in parts)


def gram(rows: Tensor, total: Tensor | None = None) -> Tensor:
    """Sum of outer products, ``(groups, positions, columns)`` → ``(groups, columns, columns)`` in float32.

    Args:
        total: added to in place, if given; may be in blocks, ``(groups * blocks, columns / blocks, columns / blocks)``.
    """
    rows = rows.float()
    if total is not None and total.shape[-1] < rows.shape[-1]:
        rows = rows.reshape(*rows.shape[:2], -1, total.shape[-1]).transpose(1, 2).flatten(0, 1)
    return torch.bmm(rows.mT, rows) if total is None else total.baddbmm_(rows.mT, rows)
