"""A layer's weight and inputs as matrices: weight (groups, rows, columns), inputs (groups, n, columns)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from timm.layers.padding import pad_same
from torch import Tensor, nn


def to_matrix(weight: Tensor, groups: int = 1) -> Tensor:
    """``(out, in/groups, *kernel)`` → ``(groups, out/groups, columns)``; a view where possible."""
    return weight.reshape(groups, weight.shape[0] // groups, -1)


@dataclass(frozen=True)
class Padding:
    """How a convolution pads its input; ``same`` is TensorFlow's rule, which depends on the input's size."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    amounts: tuple[int, ...]
    mode: str
    same: bool

    @classmethod
    def of(cls, conv: nn.Conv2d) -> "Padding":
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        amounts = tuple(conv._reversed_padding_repeated_twice)
        return cls(conv.kernel_size, conv.stride, conv.dilation, amounts, mode, isinstance(conv, Conv2dSame))

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` (n, in, h, w), padded."""
        if self.same:
            padded: Tensor = pad_same(x, list(self.kernel_size), list(self.stride), list(self.dilation))
            return padded
        return F.pad(x, self.amounts, mode=self.mode) if any(self.amounts) else x


def input_rows(module: nn.Module, x: Tensor) -> Tensor:
    """What the rows of the weight matrix are multiplied with.

    Args:
        module: a Linear or Conv2d.
        x: its input, ``(..., in)`` or ``(n, in, h, w)``.

    Returns:
        ``(groups, positions, columns)``; for convolutions the im2col rows of each group.
    """
    if isinstance(module, nn.Linear):
        return x.reshape(1, -1, x.shape[-1])
    assert isinstance(module, nn.Conv2d)
    x = Padding.of(module)(x if x.dim() == 4 else x[None])
    g, n = module.groups, x.shape[0]
    if module.kernel_size == (1, 1):
        sh, sw = module.stride
        patches = x[:, :, ::sh, ::sw].flatten(2)
    else:
        patches = F.unfold(x, module.kernel_size, module.dilation, 0, module.stride)
    return patches.view(n, g, -1, patches.shape[-1]).permute(1, 0, 3, 2).reshape(g, -1, patches.shape[1] // g)


def gram(rows: Tensor) -> Tensor:
    """Sum of outer products ``(groups, positions, columns)`` → ``(groups, columns, columns)``, float32."""
    rows = rows.float()
    return torch.bmm(rows.mT, rows)
