"""Compressed layers: they contract the factors and never rebuild the dense weight.

S is stored as its values and a bitmask of its atoms (see :mod:`lrsearch.spec.pattern`). Whole
columns and rows make a smaller dense product; any other S is unpacked into the operand of one.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy

from lrsearch.compress.fit import Decomposition
from lrsearch.compress.formats.base import low_rank
from lrsearch.compress.lazy import LazyWeight
from lrsearch.compress.matricize import Conv, Convolution, as_image, to_matrix, to_weight
from lrsearch.compress.nd_convolution import NdConv, NdConvolution
from lrsearch.compress.sparsify import contract, expand, pack_bits, unpack_bits
from lrsearch.spec.formats import FORMATS
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.pattern import pattern
from lrsearch.spec.plan import LayerPlan

_DESCRIBED = (
    "in_features", "out_features", "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode",
    "output_padding", "transposed",
)
Layer = nn.Linear | Conv | NdConv
Rule = Convolution | NdConvolution



def describe(module: nn.Module, like: nn.Module) -> None:
    """Give ``module`` what models ask their layers for, as ``like`` has it, where it has none of its own."""
    for name in _DESCRIBED:
        if hasattr(like, name) and not hasattr(module, name):
            setattr(module, name, getattr(like, name))


class CompressedLayer(nn.Module):
    """A Linear or convolution under a plan: ``factors`` of L, ``values`` (kept,) and ``bitmask`` of S, ``bias``.

    Args:
        base: the dense layer; its bias and hyper-parameters are copied, it is not changed.
        spec: the layer's spec.
        plan: the layer's plan.
        fit: factors to store; if None zeros (to be filled by ``load_state_dict``), or what the dense layer has where the plan is that.
        outputs: ascending, those that are read, if others are not (:mod:`lrsearch.spec.unread`): these alone are computed, the
            others are the bias. The layer's last factor, or S, has a row for each.
    """

    def __init__(
        self, base: Layer, spec: LayerSpec, plan: LayerPlan, fit: Decomposition | None = None, outputs: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.spec, self.plan = spec, plan
        self._pattern = pattern("column" if plan.untouched and outputs is not None else plan.pattern)
        self.convolution = _rule(base)
        describe(self, base)
        weight, kept = base.weight.detach(), plan.kept(spec)
        shapes = FORMATS[plan.format].shapes(spec, plan.rank) if plan.rank else ()
        if outputs is not None and shapes:
            shapes = (*shapes[:-1], (len(outputs), *shapes[-1][1:]))
        rows = spec.rows if outputs is None else len(outputs)
        self.factors = nn.ParameterList([nn.Parameter(weight.new_zeros(shape)) for shape in shapes])
        self._empty = not kept and not shapes  # known before models are traced
        self.values = nn.Parameter(weight.new_zeros(kept // spec.rows * rows if rows < spec.rows else kept)) if kept or not shapes else None
        atoms = torch.zeros(self._pattern.atoms(spec), dtype=torch.bool, device=weight.device)
        atoms[: kept // self._pattern.atom(spec)] = True
        self.outputs: Tensor | None
        self.register_buffer("outputs", outputs, persistent=False)
        self.bitmask: Tensor | None
        self.register_buffer("bitmask", pack_bits(atoms) if kept else None)
        self.index: Tensor | None
        self.register_buffer("index", atoms.nonzero()[:, 0] if kept and not self._is_whole else None, persistent=False)
        self.bias = None if base.bias is None else nn.Parameter(base.bias.detach().clone())
        self.register_load_state_dict_post_hook(_unpack)  # type: ignore[no-untyped-call]
        if fit is not None:
            self._fill(fit)
        elif kept:
            self.unpack()
        if fit is None and plan.untouched and outputs is not None and self.values is not None:
            self.values = nn.Parameter(self._rows(to_matrix(weight, spec)).flatten().clone())
        if weight.dim() == 4 and not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last):
            self.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def _fill(self, fit: Decomposition) -> None:
        for own, factor in zip(self.factors, fit.factors, strict=True):
            own.copy_(factor if self.outputs is None or own is not self.factors[-1] else factor[self.outputs])
        if self.values is not None and self.bitmask is not None:
            self.values.copy_(self._rows(fit.sparse)[self._rows(fit.mask)])
            self.bitmask = pack_bits(contract(fit.mask, self.spec, self._pattern))
            self.unpack()

    def _rows(self, matrix: Tensor) -> Tensor:
        """Those of ``(groups, rows / groups, columns)`` that are computed."""
        return matrix if self.outputs is None else matrix.flatten(0, 1)[self.outputs]

    def _whole(self, rows: Tensor) -> Tensor:
        """``rows``, of the outputs that are read, among zeros for the others."""
        return rows if self.outputs is None else rows.new_zeros(self.spec.rows, *rows.shape[1:]).index_copy(0, self.outputs, rows)

    def whole_factors(self) -> list[Tensor]:
        """The factors of L, the last with a row for each output, also those that are not read."""
        *others, last = self.factors
        return [*others, self._whole(last)]

    @torch.no_grad()
    def widen(self) -> None:
        """Compute all outputs, zero but for the bias where nobody reads them."""
        if self.outputs is None:
            return
        if self.factors:
            self.factors[-1] = nn.Parameter(self._whole(self.factors[-1]))
        elif self.values is not None:
            columns = self.plan.kept(self.spec) // self.spec.rows
            self.values = nn.Parameter(self._whole(self.values.view(len(self.outputs), columns)).flatten())
        self.outputs = None

    def share(self, other: "CompressedLayer") -> None:
        """Hold the factors and S of ``other``, a layer with the same weight, as its own."""
        self.factors, self.values, self.bitmask, self.index = other.factors, other.values, other.bitmask, other.index

    def extra_repr(self) -> str:
        shape = "×".join(map(str, self.spec.weight_shape))
        bias = "" if self.bias is not None else ", bias=False"
        return f"{self.spec.kind} {shape}: {self.plan}, {sum(p.numel() for p in self.parameters()):,} values{bias}"

    def unpack(self) -> None:
        """The bitmask as indices: of kept columns, kept rows or, for other patterns, kept values; none where S is the whole weight."""
        if self.values is None or self.bitmask is None:
            return
        atoms = unpack_bits(self.bitmask, self._pattern.atoms(self.spec))
        rows = self.spec.rows if self.outputs is None else len(self.outputs)
        kept = int(atoms.sum()) * self._pattern.atom(self.spec) * rows // self.spec.rows
        if kept != len(self.values):
            raise RuntimeError(f"bitmask marks {kept} positions for {len(self.values)} values")
        positions = atoms if self._pattern.drops else expand(atoms, self.spec, self._pattern).flatten()
        self.index = None if self._is_whole else positions.nonzero()[:, 0]

    @torch.no_grad()
    def decomposition(self) -> Decomposition:
        """What the layer holds, as a fit."""
        sparse, mask = self.factors[0].new_zeros(self.spec.weight_shape) if self.values is None else self.sparse_weight(), None
        if self.bitmask is not None:
            mask = expand(unpack_bits(self.bitmask, self._pattern.atoms(self.spec)), self.spec, self._pattern)
        sparse = to_matrix(sparse.detach().view(self.spec.weight_shape), self.spec)
        return Decomposition(
            self.spec, self.plan, tuple(f.detach() for f in self.whole_factors()) if self.factors else (), sparse,
            torch.zeros_like(sparse, dtype=torch.bool) if mask is None else mask,
        )

    @property
    def _is_whole(self) -> bool:
        """Whether S is the dense weight as it was, as where a layer is tried: indices would take twice its memory."""
        return self.plan.untouched and not self._pattern.drops

    def sparse_weight(self) -> Tensor:
        """S in the shape of the dense weight."""
        assert self.values is not None
        if self._is_whole:
            return to_weight(self._sparse_matrix(), self.spec)
        shape, index = self.spec.weight_shape, self.index
        if index is None:
            return self.values.new_zeros(shape)
        if self._pattern.drops == "inputs":
            rows = shape[0] if self.outputs is None else len(self.outputs)
            kept = self._whole(self.values.view(rows, len(index), *shape[2:]))
            return self.values.new_zeros(shape).index_copy(1, index, kept)
        if self._pattern.drops == "outputs":
            return self.values.new_zeros(shape).index_copy(0, index, self.values.view(-1, *shape[1:]))
        return to_weight(self._sparse_matrix(), self.spec)

    def _sparse_matrix(self) -> Tensor:
        """S, of which any values are kept, ``(groups, rows / groups, columns)``."""
        assert self.values is not None
        if self._is_whole:
            return self.values.view(self.spec.matrix_shape).clone()  # models write into what they take for a weight
        flat = self.values.new_zeros(self.spec.numel)
        return (flat if self.index is None else flat.scatter(0, self.index, self.values)).view(self.spec.matrix_shape)

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
        whole = to_weight(low_rank(self.plan.format).compose(self.spec, self.whole_factors()), self.spec)
        return whole if self.values is None else whole + self.sparse_weight()

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:  # named as in stock layers
        """The layer's output for ``input``; transposed convolutions also take the ``output_size`` that is wanted."""
        traced: object = input
        if isinstance(traced, Proxy):
            leaf: Tensor = self._leaf(traced, output_size)
            return leaf
        if self.convolution is None:
            return self._output(input, None)
        if isinstance(self.convolution, NdConvolution):
            batch = input.dim() == len(self.convolution.kernel) + 2
            x = input if batch else input[None]
            y = self._output(x, self.convolution if output_size is None else self.convolution.sized(x, output_size))
            return y if batch else y[0]
        dims = len(self.spec.weight_shape) - 2
        image = as_image(input, dims)
        last = image.is_contiguous(memory_format=torch.channels_last) and not image.is_contiguous()
        y = self._output(image, self.convolution).contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
        y = y if dims == 2 else y.squeeze(2)
        return y if input.dim() == dims + 2 else y[0]

    def _leaf(self, x: Any, output_size: Sequence[int] | None) -> Any:
        """The layer as a leaf of the graph that fx traces, as a dense one is."""
        further = {} if output_size is None else {"output_size": output_size}
        return x.tracer.create_proxy("call_module", x.tracer.path_of_module(self), (x,), further)

    def _output(self, x: Tensor, rule: Rule | None) -> Tensor:
        if (self._empty and self.spec.plain) or (self.outputs is not None and not len(self.outputs)):
            return nothing(x, self.spec.rows, rule, self.bias)
        if self.outputs is not None:
            return self._spread(self._read_outputs(x, rule), self.outputs, self.bias)
        if not self.factors:
            return self._sparse(x, self.bias, rule)
        y = low_rank(self.plan.format).contract(self.spec, x, list(self.factors), rule, self.bias)
        return y if self.values is None else y + self._sparse(x, None, rule)

    def _sparse(self, x: Tensor, bias: Tensor | None, rule: Rule | None) -> Tensor:
        """S x + bias; ``x`` (..., in) or (n, in, h, w)."""
        if isinstance(rule, NdConvolution):
            return rule(x, self._sparse_matrix().view(self.spec.rows, -1, *self.spec.kernel), bias, self.spec.groups)
        shape, channel, index = self.spec.weight_shape, -1 if self.convolution is None else 1, self.index
        if index is None or not self._pattern.drops:
            return self._dense(x, self.sparse_weight(), bias)
        assert self.values is not None
        if self._pattern.drops == "inputs":
            return self._dense(x.index_select(channel, index), self.values.view(shape[0], -1, *shape[2:]), bias)
        return self._spread(self._dense(x, self.values.view(-1, *shape[1:]), None), index, bias)

    def _read_outputs(self, x: Tensor, rule: Rule | None) -> Tensor:
        """Those that are read, without bias; ``x`` (..., in) or (n, in, h, w)."""
        if self.factors:
            return low_rank(self.plan.format).contract(self.spec, x, list(self.factors), rule, None)
        assert self.values is not None
        assert self.index is not None
        channel, index = -1 if self.convolution is None else 1, self.outputs if self.spec.groups > 1 else self.index
        assert index is not None
        x = x if len(index) == x.shape[channel] else x.index_select(channel, index)
        return self._dense(x, self.values.view(-1, len(self.index), *self.spec.weight_shape[2:]), None)

    def _spread(self, y: Tensor, index: Tensor, bias: Tensor | None) -> Tensor:
        """All outputs: ``y`` at the places ``index``, zero at the others, ``bias`` added."""
        channel, count = -1 if self.convolution is None else 1, index.shape[0]
        kept = torch.arange(count, device=index.device)
        place = torch.full((self.spec.rows,), count, device=index.device).index_copy(0, index, kept)  # count: the zero behind them
        y = F.pad(y.movedim(channel, -1), (0, 1)).index_select(-1, place)
        return (y if bias is None else y + bias).movedim(-1, channel)

    def _dense(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.convolution is None:
            return F.linear(x, weight, bias)
        groups = 1 if self.spec.groups == 1 else x.shape[1] // weight.shape[1]
        return self.convolution(x, weight.view(*weight.shape[:2], *self.spec.kernel), bias, groups)


def nothing(x: Tensor, rows: int, rule: Rule | None, bias: Tensor | None) -> Tensor:
    """What is left of a layer of zeros for ``x`` (..., in) or (n, in, h, w): its bias."""
    if rule is None:
        y = x.new_zeros(*x.shape[:-1], rows)
        return y if bias is None else y + bias
    assert isinstance(rule, Convolution)
    y = x.new_zeros(x.shape[0], rows, *rule.size(*x.shape[2:]))
    return y if bias is None else y + bias.view(-1, 1, 1)


def compressed_layer(
    base: nn.Module, spec: LayerSpec, plan: LayerPlan, fit: Decomposition | None = None, outputs: Tensor | None = None,
) -> CompressedLayer:
    """The compressed form of ``base`` under ``plan``."""
    assert isinstance(base, Layer)
    return CompressedLayer(base, spec, plan, fit, outputs)


def _rule(base: Layer) -> Rule | None:
    if isinstance(base, nn.Linear):
        return None
    return Convolution.of(base) if isinstance(base, Conv) else NdConvolution.of(base)


def _unpack(module: CompressedLayer, _: object) -> None:
    """After a state dict is loaded; a function of the module, so that layers can be pickled."""
    module.unpack()
