"""Compressed layers: they contract the factors and never rebuild the dense weight.

S is stored as its values and a bitmask of its atoms (see :mod:`lrsearch.spec.pattern`). Whole
columns and rows make a smaller dense product; any other S is unpacked into the operand of one.
"""

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrsearch.compress.fit import Decomposition
from lrsearch.compress.formats.base import low_rank
from lrsearch.compress.lazy import LazyWeight
from lrsearch.compress.matricize import Conv, Convolution, as_image
from lrsearch.compress.sparsify import contract, expand, pack_bits, unpack_bits
from lrsearch.spec.formats import FORMATS
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.pattern import pattern
from lrsearch.spec.plan import LayerPlan

_DESCRIBED = (
    "in_features", "out_features", "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode",
)


def describe(module: nn.Module, like: nn.Module) -> None:
    """Give ``module`` what models ask their layers for, as ``like`` has it, where it has none of its own."""
    for name in _DESCRIBED:
        if hasattr(like, name) and not hasattr(module, name):
            setattr(module, name, getattr(like, name))


class CompressedLayer(nn.Module):
    """A Linear, Conv1d or Conv2d under a plan: ``factors`` of L, ``values`` (kept,) and ``bitmask`` of S, ``bias``.

    Args:
        base: the dense layer; its bias and hyper-parameters are copied, it is not changed.
        spec: the layer's spec.
        plan: the layer's plan.
        fit: factors to store; zeros if None (to be filled by ``load_state_dict``).
    """

    def __init__(self, base: nn.Linear | Conv, spec: LayerSpec, plan: LayerPlan, fit: Decomposition | None = None) -> None:
        super().__init__()
        self.spec, self.plan, self._pattern = spec, plan, pattern(plan.pattern)
        self.convolution = None if isinstance(base, nn.Linear) else Convolution.of(base)
        describe(self, base)
        weight, kept = base.weight.detach(), plan.kept(spec)
        shapes = FORMATS[plan.format].shapes(spec, plan.rank) if plan.rank else ()
        self.factors = nn.ParameterList([nn.Parameter(weight.new_zeros(shape)) for shape in shapes])
        self.values = nn.Parameter(weight.new_zeros(kept)) if kept or not shapes else None
        atoms = torch.zeros(self._pattern.atoms(spec), dtype=torch.bool, device=weight.device)
        atoms[: kept // self._pattern.atom(spec)] = True
        self.bitmask: Tensor | None
        self.register_buffer("bitmask", pack_bits(atoms) if kept else None)
        self.register_buffer("index", atoms.nonzero()[:, 0] if kept else None, persistent=False)
        self.bias = None if base.bias is None else nn.Parameter(base.bias.detach().clone())
        self.register_load_state_dict_post_hook(lambda module, _: module.unpack())  # type: ignore[no-untyped-call]
        if fit is not None:
            self._fill(fit)
        elif kept:
            self.unpack()
        if weight.dim() == 4 and not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last):
            self.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def _fill(self, fit: Decomposition) -> None:
        for own, factor in zip(self.factors, fit.factors, strict=True):
            own.copy_(factor)
        if self.values is not None and self.bitmask is not None:
            self.values.copy_(fit.sparse[fit.mask])
            self.bitmask = pack_bits(contract(fit.mask, self.spec, self._pattern))
            self.unpack()

    def unpack(self) -> None:
        """The bitmask as indices: of kept columns, kept rows or, for other patterns, kept values."""
        if self.values is None or self.bitmask is None:
            return
        atoms = unpack_bits(self.bitmask, self._pattern.atoms(self.spec))
        kept = int(atoms.sum()) * self._pattern.atom(self.spec)
        if kept != len(self.values):
            raise RuntimeError(f"bitmask marks {kept} positions for {len(self.values)} values")
        whole = self._pattern.kind in ("column", "row")
        self.index = (atoms if whole else expand(atoms, self.spec, self._pattern).flatten()).nonzero()[:, 0]

    @torch.no_grad()
    def decomposition(self) -> Decomposition:
        """What the layer holds, as a fit."""
        sparse, mask = self.factors[0].new_zeros(self.spec.matrix_shape) if self.values is None else self.sparse_weight(), None
        if self.bitmask is not None:
            mask = expand(unpack_bits(self.bitmask, self._pattern.atoms(self.spec)), self.spec, self._pattern)
        sparse = sparse.detach().reshape(self.spec.matrix_shape)
        return Decomposition(
            self.spec, self.plan, tuple(f.detach() for f in self.factors), sparse,
            torch.zeros_like(sparse, dtype=torch.bool) if mask is None else mask,
        )

    def sparse_weight(self) -> Tensor:
        """S in the shape of the dense weight."""
        assert self.values is not None
        shape, index = self.spec.weight_shape, self.index
        if self.bitmask is None:
            return self.values.new_zeros(shape)
        if self._pattern.kind == "column":
            return self.values.new_zeros(shape).index_copy(1, index, self.values.view(shape[0], -1, *shape[2:]))
        if self._pattern.kind == "row":
            return self.values.new_zeros(shape).index_copy(0, index, self.values.view(-1, *shape[1:]))
        return self.values.new_zeros(prod(shape)).scatter(0, index, self.values).view(shape)

    @property
    def weight(self) -> Tensor:
        """L + S in the shape of the dense weight, composed only where code reads more of it than its dtype, device or shape."""
        if torch.compiler.is_dynamo_compiling():  # it cannot trace the subclass, and compilers drop what is not used
            return self.whole_weight()
        return LazyWeight(self.spec.weight_shape, next(self.parameters()), self.whole_weight)

    def whole_weight(self) -> Tensor:
        """L + S in the shape of the dense weight."""
        if not self.factors:
            return self.sparse_weight()
        whole = low_rank(self.plan.format).compose(self.spec, list(self.factors)).view(self.spec.weight_shape)
        return whole if self.values is None else whole + self.sparse_weight()

    def forward(self, input: Tensor) -> Tensor:  # the name that it has in stock layers, which may be called by it
        if self.convolution is None:
            return self._output(input)
        dims = len(self.spec.weight_shape) - 2
        image = as_image(input, dims)
        last = image.is_contiguous(memory_format=torch.channels_last) and not image.is_contiguous()
        y = self._output(image).contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
        y = y if dims == 2 else y.squeeze(2)
        return y if input.dim() == dims + 2 else y[0]

    def _output(self, x: Tensor) -> Tensor:
        if not self.factors:
            return self._sparse(x, self.bias)
        y = low_rank(self.plan.format).contract(self.spec, x, list(self.factors), self.convolution, self.bias)
        return y if self.values is None else y + self._sparse(x, None)

    def _sparse(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """S x + bias; ``x`` (..., in) or (n, in, h, w)."""
        shape, channel, index = self.spec.weight_shape, -1 if self.convolution is None else 1, self.index
        if index is None or self._pattern.kind not in ("column", "row"):
            return self._dense(x, self.sparse_weight(), bias)
        assert self.values is not None
        if self._pattern.kind == "column":
            return self._dense(x.index_select(channel, index), self.values.view(shape[0], -1, *shape[2:]), bias)
        y = self._dense(x, self.values.view(-1, *shape[1:]), None).movedim(channel, -1)
        y = F.pad(y, (0, 1)).index_select(-1, self._spread(index))
        return (y if bias is None else y + bias).movedim(-1, channel)

    def _spread(self, index: Tensor) -> Tensor:
        """Where each output row is among the kept ones; the rows left out take the zero behind them."""
        kept = torch.arange(len(index), device=index.device)
        return torch.full((self.spec.rows,), len(index), device=index.device).index_copy(0, index, kept)

    def _dense(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.convolution is None:
            return F.linear(x, weight, bias)
        return self.convolution(x, weight.view(*weight.shape[:2], *self.spec.kernel), bias, self.spec.groups)


def compressed_layer(base: nn.Module, spec: LayerSpec, plan: LayerPlan, fit: Decomposition | None = None) -> CompressedLayer:
    """The compressed form of ``base`` under ``plan``."""
    assert isinstance(base, nn.Linear | Conv)
    return CompressedLayer(base, spec, plan, fit)
