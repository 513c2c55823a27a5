"""BatchNorm folded into the layer before it, dense or compressed: exact in eval mode, and one operator less to run."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

from lrsearch.compress.formats.base import low_rank
from lrsearch.compress.inventory import DENSE_FORWARDS
from lrsearch.compress.matricize import Conv
from lrsearch.compress.modules import CompressedLayer
from lrsearch.spec.pattern import pattern
from lrsearch.task.forward import Inputs, first_tensor, forward, inference, named_tensors

Layer = nn.Linear | Conv | CompressedLayer


def fold_batchnorm(model: nn.Module, sample: Inputs) -> list[str]:
    """Fold, in place, every BatchNorm that is all that reads a layer's output.

    A BatchNorm in eval mode scales and shifts each output, so it goes into the rows of W, or of
    L and S, and the bias. Left alone: layers whose outputs are split over several factors (``tt``
    of a matrix), and whatever is called twice.

    Args:
        model: in eval mode.
        sample: a batch that it accepts.

    Returns:
        Names of the folded BatchNorms, in the order of their calls.
    """
    names = {m: n for n, m in model.named_modules()}
    folded = []
    for layer, norm in _pairs(model, sample):
        assert norm.running_var is not None
        assert norm.running_mean is not None
        gain = (norm.running_var.double() + norm.eps).rsqrt()
        gain = gain if norm.weight is None else gain * norm.weight.detach()
        shift = -norm.running_mean.double() * gain
        _scale(layer, gain, shift if norm.bias is None else shift + norm.bias.detach())
        replace(model, norm, nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity())
        folded.append(names[norm])
    return folded


def replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` wherever ``model`` has ``old`` as a submodule."""
    for parent, child in [(p, c) for p in model.modules() for c, m in p._modules.items() if m is old]:
        setattr(parent, child, new)


class _Readers(TorchDispatchMode):
    """Counts what reads a layer's output, while it is on: operators outside of a BatchNorm, and BatchNorms."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[nn.Module] = Counter()
        self.layer: dict[int, Layer] = {}  # id of an output → the layer
        self.norm: dict[int, _BatchNorm] = {}  # id of an output → the BatchNorm that reads it
        self.spoilt: set[int] = set()
        self._alive: list[Tensor] = []
        self._inside: _BatchNorm | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._inside is None:
            self.read_by_others(args, kwargs)
        return func(*args, **(kwargs or {}))

    def read_by_others(self, *values: Any) -> None:
        self.spoilt |= {id(t) for t in named_tensors(values).values()} & self.layer.keys()

    def made(self, module: nn.Module, _: Any, output: Tensor) -> None:
        assert isinstance(module, Layer)
        self.calls[module] += 1
        self._alive.append(output)  # so that its id stays its own
        if output.dim() == module.weight.dim():  # so that its channels are where a BatchNorm looks for them
            self.layer[id(output)] = module

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert isinstance(module, _BatchNorm)
        self.calls[module] += 1
        self._inside = module
        read = id(first_tensor(args, kwargs))
        if read in self.norm:
            self.spoilt.add(read)
        self.norm[read] = module

    def leave(self, *_: Any) -> None:
        self._inside = None


def _pairs(model: nn.Module, sample: Inputs) -> Iterator[tuple[Layer, _BatchNorm]]:
    """Layers and the BatchNorms that alone read their outputs, found by a forward pass."""
    readers = _Readers()
    hooks = []
    for module in model.modules():
        if isinstance(module, Layer) and _foldable(module):
            hooks.append(module.register_forward_hook(readers.made))
        if isinstance(module, _BatchNorm) and module.running_mean is not None and _known(module):
            hooks += [module.register_forward_pre_hook(readers.enter, with_kwargs=True), module.register_forward_hook(readers.leave)]
    try:
        with inference(model), readers:
            readers.read_by_others(forward(model, sample))
    finally:
        for hook in hooks:
            hook.remove()
    for output, norm in readers.norm.items():
        layer = readers.layer.get(output)
        if layer is not None and output not in readers.spoilt and readers.calls[layer] == readers.calls[norm] == 1:
            yield layer, norm


def _known(norm: _BatchNorm) -> bool:
    return type(norm).forward in (_BatchNorm.forward, BatchNormAct2d.forward)


def _foldable(layer: Layer) -> bool:
    if isinstance(layer, CompressedLayer):
        return not layer.factors or low_rank(layer.plan.format).chained(layer.spec)
    return type(layer).forward in DENSE_FORWARDS and "weight" in layer._parameters and not parametrize.is_parametrized(layer)


@torch.no_grad()
def _scale(layer: Layer, gain: Tensor, shift: Tensor) -> None:
    """Multiply the layer's outputs by ``gain`` (rows,), then add ``shift`` (rows,)."""
    if isinstance(layer, CompressedLayer):
        parts = [layer.factors[-1]] if layer.factors else []
        like = (layer.values if layer.values is not None else parts[0]).dtype
        for last in parts:
            last.mul_(gain.to(like).view(-1, *[1] * (last.dim() - 1)))
        if layer.values is not None and layer.index is not None:
            layer.values.mul_(gain.to(like)[_rows(layer)])
    else:
        like = layer.weight.dtype
        layer.weight = nn.Parameter(layer.weight * gain.to(like).view(-1, *[1] * (layer.weight.dim() - 1)))
    layer.bias = nn.Parameter((shift if layer.bias is None else layer.bias * gain + shift).to(like))


def _rows(layer: CompressedLayer) -> Tensor:
    """The output row that each of ``layer.values`` belongs to."""
    assert layer.values is not None
    assert layer.index is not None
    kind = pattern(layer.plan.pattern).kind
    if kind == "column":
        return torch.arange(layer.spec.rows, device=layer.index.device).repeat_interleave(len(layer.values) // layer.spec.rows)
    if kind == "row":
        return layer.index.repeat_interleave(layer.spec.columns)
    return layer.index // layer.spec.columns
