"""Compressed layers: they contract the factors and never rebuild W.

The sparse part is stored as values and a bitmask (one bit per position, row-major); it is
unpacked into the operand of one convolution or matrix product.
"""

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrsearch.compress.fit import Decomposition
from lrsearch.compress.matricize import Padding
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.plan import LayerPlan

_BITS = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)


def pack_bits(mask: Tensor) -> Tensor:
    """Bool mask of any shape → ``ceil(numel / 8)`` bytes, least significant bit first."""
    bits = F.pad(mask.flatten().to(torch.uint8), (0, -mask.numel() % 8)).view(-1, 8)
    return (bits * _BITS.to(mask.device)).sum(1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, numel: int) -> Tensor:
    """Inverse of :func:`pack_bits`: a flat bool mask of ``numel`` positions."""
    return ((packed[:, None] & _BITS.to(packed.device)) != 0).flatten()[:numel]


class LowRankSparse(nn.Module):
    """Common part of the compressed layers: ``left`` (rows, rank), ``right`` (rank, columns),
    ``values`` (kept,) and ``bitmask``; a part that the plan leaves out is None.

    Args:
        base: the dense layer; its bias and hyper-parameters are copied, it is not changed.
        spec: the layer's spec.
        plan: the layer's plan.
        fit: factors to store; zeros if None (to be filled by ``load_state_dict``).
    """

    def __init__(self, base: nn.Linear | nn.Conv2d, spec: LayerSpec, plan: LayerPlan, fit: Decomposition | None = None) -> None:
        super().__init__()
        zeros = base.weight.detach().new_zeros
        self.weight_shape = spec.weight_shape
        kept, rank = plan.kept(spec), plan.rank
        self.left = nn.Parameter(zeros(spec.rows, rank)) if rank else None
        self.right = nn.Parameter(zeros(rank, spec.columns)) if rank else None
        self.values = nn.Parameter(zeros(kept)) if kept or not rank else None
        mask = torch.zeros(spec.numel, dtype=torch.bool, device=base.weight.device)
        mask[:kept] = True
        self.bitmask: Tensor | None
        self.register_buffer("bitmask", pack_bits(mask) if kept else None)
        self.register_buffer("positions", mask.nonzero()[:, 0] if self.values is not None else None, persistent=False)
        self.bias = None if base.bias is None else nn.Parameter(base.bias.detach().clone())
        self.register_load_state_dict_post_hook(lambda module, _: module._unpack())  # type: ignore[no-untyped-call]
        if fit is not None:
            self._fill(fit)

    @torch.no_grad()
    def _fill(self, fit: Decomposition) -> None:
        if self.left is not None and self.right is not None:
            self.left.copy_(fit.left)
            self.right.copy_(fit.right)
        if self.values is not None and self.bitmask is not None:
            self.values.copy_(fit.sparse[fit.mask])
            self.bitmask = pack_bits(fit.mask)
            self._unpack()

    def _unpack(self) -> None:
        if self.values is None or self.bitmask is None:
            return
        self.positions = unpack_bits(self.bitmask, prod(self.weight_shape)).nonzero()[:, 0]
        if len(self.positions) != len(self.values):
            raise RuntimeError(f"bitmask marks {len(self.positions)} positions for {len(self.values)} values")

    def sparse_weight(self) -> Tensor:
        """S in the shape of the dense weight."""
        assert self.values is not None
        zeros = self.values.new_zeros(prod(self.weight_shape))
        return zeros.scatter(0, self.positions, self.values).view(self.weight_shape)


    @property
    def weight(self) -> Tensor:
        """L + S in the shape of the dense weight: for code that asks a layer for its dtype or shape."""
        if self.left is None or self.right is None:
            return self.sparse_weight()
        low_rank = (self.left @ self.right).view(self.weight_shape)
        return low_rank if self.values is None else low_rank + self.sparse_weight()


class LowRankSparseLinear(LowRankSparse):
    """``y = left (right x) + S x + bias`` for ``x`` (..., in) → (..., out)."""

    def forward(self, x: Tensor) -> Tensor:
        if self.left is None or self.right is None:
            return F.linear(x, self.sparse_weight(), self.bias)
        y = F.linear(F.linear(x, self.right), self.left, self.bias)
        return y if self.values is None else y + F.linear(x, self.sparse_weight())


class LowRankSparseConv2d(LowRankSparse):
    """A k×k convolution to ``rank`` channels, a 1×1 to ``out``, plus a convolution with S."""

    def __init__(self, base: nn.Conv2d, spec: LayerSpec, plan: LayerPlan, fit: Decomposition | None = None) -> None:
        super().__init__(base, spec, plan, fit)
        self.pad = Padding.of(base)
        self.stride, self.dilation, self.groups = base.stride, base.dilation, base.groups

    def forward(self, x: Tensor) -> Tensor:
        x = self.pad(x)
        if self.left is None or self.right is None:
            return F.conv2d(x, self.sparse_weight(), self.bias, self.stride, 0, self.dilation, self.groups)
        right = self.right.view(-1, *self.weight_shape[1:])
        y = F.conv2d(x, right, None, self.stride, 0, self.dilation)
        y = F.conv2d(y, self.left[:, :, None, None], self.bias)
        return y if self.values is None else y + F.conv2d(x, self.sparse_weight(), None, self.stride, 0, self.dilation)


def compressed_layer(base: nn.Module, spec: LayerSpec, plan: LayerPlan, fit: Decomposition | None = None) -> LowRankSparse:
    """The compressed form of ``base`` under ``plan``."""
    if isinstance(base, nn.Conv2d):
        return LowRankSparseConv2d(base, spec, plan, fit)
    assert isinstance(base, nn.Linear)
    return LowRankSparseLinear(base, spec, plan, fit)
