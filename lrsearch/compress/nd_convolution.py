"""3-D and transposed convolutions, whose low-rank part is an SVD."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import torch.nn.functional as F
from torch import Tensor, nn

Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
NdConv = nn.Conv3d | Transposed
_CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_SCATTER = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@dataclass(frozen=True)
class NdConvolution:
    """How a 3-D or transposed convolution pads, strides and dilates.

    Attributes:
        kernel: its true sizes, one per dimension, as in all that follow.
        amounts: those of ``torch.nn.functional.pad``, for what is not transposed.
        padding: of a transposed convolution.
        output_padding: likewise.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    amounts: tuple[int, ...] = ()
    mode: str = "constant"
    padding: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()
    transposed: bool = False

    @classmethod
    def of(cls, conv: NdConv) -> "NdConvolution":
        kernel, stride, dilation = tuple(conv.weight.shape[2:]), tuple(conv.stride), tuple(conv.dilation)
        if isinstance(conv, Transposed):
            padding, extra = tuple(int(p) for p in conv.padding), tuple(conv.output_padding)
            return cls(kernel, stride, dilation, padding=padding, output_padding=extra, transposed=True)
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        amounts: Sequence[int] = conv._reversed_padding_repeated_twice
        if mode == "constant" and not isinstance(conv.padding, str):
            amounts = [p for p in reversed(conv.padding) for _ in range(2)]
        return cls(kernel, stride, dilation, tuple(amounts), mode)

    def sized(self, x: Tensor, output_size: Sequence[int]) -> "NdConvolution":
        """The same with the output padding that makes the outputs for ``x`` (n, in, ...) as large as ``output_size`` says."""
        dims, wanted = len(self.kernel), tuple(output_size)[-len(self.kernel) :]
        rules = zip(x.shape[-dims:], self.kernel, self.stride, self.padding, self.dilation, strict=True)
        least = [(size - 1) * stride - 2 * padding + dilation * (kernel - 1) + 1 for size, kernel, stride, padding, dilation in rules]
        return replace(self, output_padding=tuple(w - m for w, m in zip(wanted, least, strict=True)))

    def pad(self, x: Tensor) -> Tensor:
        return F.pad(x, self.amounts, mode=self.mode) if any(self.amounts) else x

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None, groups: int = 1, axes: str = "hw") -> Tensor:
        """The outputs for ``x`` (n, in, ...).

        Args:
            weight: a matrix ``(rows, in/groups)``, followed by the sizes that the kernel has as a matrix.
            axes: without any it is a map of the channels at each position.
        """
        dims = len(self.kernel)
        if not axes:
            return _CONVOLVE[dims](x, weight.reshape(*weight.shape[:2], *[1] * dims), bias, groups=groups)
        if self.transposed:
            rows = weight.reshape(groups, weight.shape[0] // groups, -1)
            whole = rows.mT.reshape(groups * rows.shape[2], rows.shape[1] // prod(self.kernel), *self.kernel)
            return _SCATTER[dims](x, whole, bias, self.stride, self.padding, self.output_padding, groups, self.dilation)
        whole = weight.reshape(*weight.shape[:2], *self.kernel)
        left, right = self.amounts[::2], self.amounts[1::2]
        padding: tuple[int, ...] = tuple(reversed(left)) if left == right and self.mode == "constant" else (0,) * dims
        x = x if any(padding) else self.pad(x)
        return _CONVOLVE[dims](x, whole, bias, self.stride, padding, self.dilation, groups)


def nd_rows(module: NdConv, x: Tensor) -> Tensor:
    """What the rows of the weight matrix are multiplied with: ``(groups, positions, columns)``."""
    rule = NdConvolution.of(module)
    dims, g = len(rule.kernel), module.groups
    x = x if x.dim() == dims + 2 else x[None]
    if not rule.transposed:
        x = rule.pad(x)
        for i, (k, s, d) in enumerate(zip(rule.kernel, rule.stride, rule.dilation, strict=True)):
            x = x.unfold(2 + i, d * (k - 1) + 1, s)[..., ::d]
    n, channels, positions = x.shape[0], x.shape[1], prod(x.shape[2 : 2 + dims])
    x = x.reshape(n, g, channels // g, positions, -1).permute(1, 2, 4, 0, 3)
    return x.reshape(g, -1, n * positions).mT
