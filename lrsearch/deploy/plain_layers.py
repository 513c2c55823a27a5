"""A compressed layer as the stock modules that runtimes fuse best."""

from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrsearch.compress.formats.base import low_rank
from lrsearch.compress.formats.chain import Chain
from lrsearch.compress.matricize import Conv, Convolution, as_image
from lrsearch.compress.modules import CompressedLayer, nothing
from lrsearch.compress.nd_convolution import NdConvolution
from lrsearch.spec.pattern import pattern

_KINDS: dict[str, Any] = {
    "conv3d": nn.Conv3d, "conv_transpose1d": nn.ConvTranspose1d, "conv_transpose2d": nn.ConvTranspose2d,
    "conv_transpose3d": nn.ConvTranspose3d,
}


def plain(layer: CompressedLayer, merged: bool = False) -> nn.Module:
    """Stock modules that compute what ``layer`` computes.

    L is a chain of convolutions or linear maps, whole columns of S a smaller layer on the channels
    that are kept, whole rows a smaller one whose outputs are spread out. Where S is anything else
    a runtime multiplies with its zeros, so that L + S as one dense weight takes the least.

    Args:
        merged: one dense weight in any case.
    """
    if not layer.spec.plain:
        return _dense(layer) if merged or layer.plan.executed.untouched else layer
    if layer.plan.zero and not merged:
        return Nothing(layer)
    if merged or layer.plan.executed.untouched or not (layer.factors or layer.plan.kept(layer.spec)):
        return _sequence(_stage(layer, layer.weight, layer.bias, "hw", layer.spec.groups))
    if layer.factors and not low_rank(layer.plan.format).chained(layer.spec):
        return layer
    if not layer.factors:
        return _sparse(layer, layer.bias)
    return Sum(_low_rank(layer), _sparse(layer, None)) if layer.plan.kept(layer.spec) else _low_rank(layer)


def narrowed(layer: CompressedLayer, index: Tensor) -> nn.Module:
    """``layer``, without a low-rank part, on the channels ``index`` of its input alone, which are all that it reads."""
    return _sequence(_stage(layer, layer.whole_weight()[:, index], layer.bias, "hw", 1))


class Nothing(nn.Module):
    """What is left of a layer of zeros: its bias, everywhere."""

    def __init__(self, layer: CompressedLayer | nn.Linear | Conv) -> None:
        super().__init__()
        if isinstance(layer, CompressedLayer):
            shape, self.rule = layer.spec.weight_shape, layer.convolution
        else:
            shape, self.rule = tuple(layer.weight.shape), None if isinstance(layer, nn.Linear) else Convolution.of(layer)
        self.rows, self.dims = shape[0], len(shape) - 2
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())

    def forward(self, input: Tensor) -> Tensor:  # the name that it has in stock layers, which may be called by it
        image = as_image(input, self.dims) if self.dims else input
        y = nothing(image, self.rows, self.rule, self.bias)
        return y if self.dims != 1 else y.squeeze(2)


class Pad(nn.Module):
    """Pads as ``rule`` does along ``axes``, where a convolution cannot do it itself; (..., [h,] w) → (..., [h,] w)."""

    def __init__(self, rule: Convolution, axes: str, dims: int) -> None:
        super().__init__()
        self.rule, self.axes, self.dims = rule, axes, dims
        self.amounts = [a if axis in axes else 0 for a, axis in zip(rule.amounts, "wwhh", strict=True)][: 2 * dims]

    def forward(self, x: Tensor) -> Tensor:
        return self.rule.pad(x, self.axes) if self.rule.same else F.pad(x, self.amounts, mode=self.rule.mode)


class Gather(nn.Module):
    """The channels ``index`` of ``x``; they are its axis ``-1 - dims``."""

    def __init__(self, index: Tensor, dims: int) -> None:
        super().__init__()
        self.dims = dims
        self.register_buffer("index", index)

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(-1 - self.dims, self.get_buffer("index"))


class Spread(nn.Module):
    """Channels put where ``index`` says among ``rows``, zeros between them, ``bias`` (rows,) added."""

    def __init__(self, index: Tensor, rows: int, bias: Tensor | None, dims: int) -> None:
        super().__init__()
        self.dims = dims
        kept = torch.arange(len(index), device=index.device)
        self.register_buffer("source", torch.full((rows,), len(index), device=index.device).index_copy(0, index, kept))
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone().view(-1, *[1] * dims))

    def forward(self, x: Tensor) -> Tensor:
        y = F.pad(x, [0, 0] * self.dims + [0, 1]).index_select(-1 - self.dims, self.get_buffer("source"))
        return y if self.bias is None else y + self.bias


class Sum(nn.Module):
    """L x + S x."""

    def __init__(self, low_rank: nn.Module, sparse: nn.Module) -> None:
        super().__init__()
        self.low_rank, self.sparse = low_rank, sparse

    def forward(self, input: Tensor) -> Tensor:  # the name that it has in stock layers, which may be called by it
        y: Tensor = self.low_rank(input) + self.sparse(input)
        return y


def _dense(layer: CompressedLayer) -> nn.Module:
    """A 3-D or transposed convolution with L + S as its weight."""
    rule = layer.convolution
    assert isinstance(rule, NdConvolution)
    further: dict[str, Any] = {"padding": rule.padding, "output_padding": rule.output_padding}
    if not rule.transposed:
        if rule.amounts[::2] != rule.amounts[1::2]:
            return layer
        further = {"padding": tuple(reversed(rule.amounts[::2])), "padding_mode": "zeros" if rule.mode == "constant" else rule.mode}
    channels = layer.spec.channels * layer.spec.groups
    out = layer.spec.rows // prod(rule.kernel) if rule.transposed else layer.spec.rows
    new: nn.Module = _KINDS[layer.spec.kind](
        channels, out, rule.kernel, stride=rule.stride, dilation=rule.dilation, groups=layer.spec.groups,
        bias=layer.bias is not None, device="meta", **further,
    )
    new.weight = nn.Parameter(layer.whole_weight().detach().clone())
    if layer.bias is not None:
        new.bias = nn.Parameter(layer.bias.detach().clone())
    return new


def _sequence(modules: list[nn.Module]) -> nn.Module:
    return modules[0] if len(modules) == 1 else nn.Sequential(*modules)


def _low_rank(layer: CompressedLayer) -> nn.Module:
    form, stages, channels = low_rank(layer.plan.format), list[nn.Module](), layer.spec.channels * layer.spec.groups
    assert isinstance(form, Chain)
    for i, (factor, axes) in enumerate(zip(layer.factors, form.axes(layer.spec), strict=True)):
        bias = layer.bias if i == len(layer.factors) - 1 else None
        stages += _stage(layer, factor, bias, axes, channels // factor.shape[1])
        channels = factor.shape[0]
    return _sequence(stages)


def _sparse(layer: CompressedLayer, bias: Tensor | None) -> nn.Module:
    """S of whole columns or rows."""
    assert layer.values is not None
    assert layer.index is not None
    shape, dims = layer.spec.weight_shape, len(layer.spec.weight_shape) - 2
    if pattern(layer.plan.pattern).drops == "inputs":
        weight = layer.values.view(shape[0], -1, *shape[2:])
        return _sequence([Gather(layer.index, dims), *_stage(layer, weight, bias, "hw", 1)])
    weight = layer.values.view(-1, *shape[1:])
    return _sequence([*_stage(layer, weight, None, "hw", 1), Spread(layer.index, shape[0], bias, dims)])


def _stage(layer: CompressedLayer, weight: Tensor, bias: Tensor | None, axes: str, groups: int) -> list[nn.Module]:
    """One linear map or convolution that pads and strides along ``axes``, after what padding it cannot do itself."""
    rule, modules = layer.convolution, list[nn.Module]()
    assert not isinstance(rule, NdConvolution)
    if rule is None:
        new: nn.Module = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    else:
        dims = len(layer.spec.weight_shape) - 2
        weight = weight.view(*weight.shape[:2], *_kernel(weight)[-dims:])
        padding = rule.symmetric(axes)
        if padding is None:
            modules.append(Pad(rule, axes, dims))
        kind = nn.Conv1d if dims == 1 else nn.Conv2d
        strides, dilations = rule.along(axes, rule.stride)[-dims:], rule.along(axes, rule.dilation)[-dims:]
        new = kind(
            groups * weight.shape[1], weight.shape[0], weight.shape[2:], strides, (padding or (0, 0))[-dims:], dilations,  # type: ignore[arg-type]
            groups, bias is not None, device="meta",
        )
    new.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        new.bias = nn.Parameter(bias.detach().clone())
    return [*modules, new]


def _kernel(weight: Tensor) -> tuple[int, ...]:
    return (1, *weight.shape[2:])[-2:]
