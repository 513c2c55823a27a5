"""What feeds a layer alone, channel by channel: the outputs behind a column that the layer drops need not be computed at all.

In an inverted residual the projection is fed by the expansion, through a depthwise convolution; in a transformer the second layer of
an MLP by the first. Where such a layer drops whole columns, the outputs that only they read, and their depthwise filters, go too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lrsearch.compress.matricize import Conv
from lrsearch.compress.modules import CompressedLayer
from lrsearch.deploy.trace import Tracker, channels_last
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.plan import LayerPlan
from lrsearch.spec.unread import drops_columns, may_leave_out
from lrsearch.task.forward import Inputs, forward, inference, output_tensors

SAME = 1e-4  # of the largest output: sums of fewer values are rounded otherwise
LANES = 4  # channels: other numbers of them take longer than the next multiple, see studies/results/lanes.txt


@dataclass(frozen=True)
class Feed:
    """A layer and what alone feeds it.

    Attributes:
        producer: name of the layer whose outputs become the fed layer's inputs, each from the one of its channel, and go nowhere else.
        between: names of what is between them, in order: depthwise convolutions, and modules without weights that treat every
            channel by itself. Functions of each value, which may be there too, have none.
        shapes: of the inputs of the producer, of each between, and of the fed layer.
        layers: names of those among them that have weights: the producer, and depthwise convolutions.
    """

    producer: str
    between: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    layers: tuple[str, ...]


def feeds(model: nn.Module, sample: Inputs) -> dict[str, Feed]:
    """Layer name → its feed, for the layers that have one; found by a forward pass.

    Args:
        model: dense or compressed; what is called more than once, or read otherwise than by one module or one function of each of
            its values, feeds nothing, and so does what the model's own code asks for its shape.
        sample: a batch that it accepts.
    """
    tracker = Tracker()
    leaves = [m for m in model.modules() if isinstance(m, CompressedLayer) or not list(m.children())]
    hooks = [m.register_forward_pre_hook(tracker.enter, with_kwargs=True) for m in leaves]
    hooks += [m.register_forward_hook(tracker.leave, with_kwargs=True) for m in leaves]
    try:
        with inference(model), tracker:
            tracker.spoil(forward(model, sample))
    finally:
        for hook in hooks:
            hook.remove()
    names = {m: n for n, m in model.named_modules()}
    found = {}
    for layer, chain in tracker.fed.items():
        modules = {link.module: link.shape for link in chain if link.module} | {layer: tracker.shape[layer]}
        if all(tracker.calls[m] == 1 for m in modules) and not tracker.spoilt & {link.output for link in chain}:
            producer, *between, _ = (names[m] for m in modules)
            filters = (names[m] for m in list(modules)[1:-1] if isinstance(m, Conv))
            found[names[layer]] = Feed(producer, tuple(between), tuple(modules.values()), (producer, *filters))
    if found and not _may_narrow(model, sample, found):
        found = {name: feed for name, feed in found.items() if _may_narrow(model, sample, {name: feed})}
    return found


def fed_layers(dense: nn.Module, menus: Mapping[str, Sequence[LayerPlan]], sample: Inputs) -> dict[str, Feed]:
    """Layer name → its feed, of those whose columns are a choice.

    Args:
        dense: deployed.
        menus: layer name → choices.
        sample: a batch that ``dense`` accepts.
    """
    asked = {name for name, menu in menus.items() if any(map(drops_columns, menu))}
    return {name: feed for name, feed in (feeds(dense, sample) if asked else {}).items() if name in asked}


def with_readers(layers: Sequence[LayerSpec], fed: Mapping[str, Feed]) -> tuple[LayerSpec, ...]:
    """``layers``, each of which knows the one that it alone feeds, where rows of it may be left out with that one's columns."""
    readers = {each: name for name, feed in fed.items() for each in feed.layers}
    return tuple(replace(layer, read_by=readers.get(layer.name, "") if may_leave_out(layer, LayerPlan()) else "") for layer in layers)


def _may_narrow(model: nn.Module, sample: Inputs, found: Mapping[str, Feed]) -> bool:
    """Whether the model returns the same where every second output of each producer is left out as where the fed layer reads it as 0.

    It does not where the model's own code asks for the shape of what is narrowed, or checks it.
    """
    try:
        zeroed, narrowed = (_tried(model, sample, found, narrow) for narrow in (False, True))
        return all(
            a.shape == b.shape and torch.allclose(a, b, rtol=SAME, atol=SAME * float(a.abs().max()), equal_nan=True)
            for a, b in zip(zeroed, narrowed, strict=True) if a.is_floating_point() and a.numel()
        )
    except Exception:  # the model's own code, which may raise anything
        return False


def _tried(model: nn.Module, sample: Inputs, found: Mapping[str, Feed], narrow: bool) -> list[Tensor]:
    """What the model returns with every second output of each producer zero for who reads it, or left out on the way there."""
    hooks = []
    for name, feed in found.items():
        half = _Half(-1 if channels_last(model.get_submodule(feed.producer)) else 1)
        leaves = [feed.producer, *(n for n in feed.between if isinstance(model.get_submodule(n), Conv))] if narrow else []
        reads = [*leaves[1:], name]
        hooks += [model.get_submodule(n).register_forward_pre_hook(half.whole, with_kwargs=True) for n in reads]
        hooks += [model.get_submodule(n).register_forward_hook(half.left) for n in leaves]
    try:
        with inference(model):
            return list(output_tensors(forward(model, sample)).values())
    finally:
        for hook in hooks:
            hook.remove()


class _Half:
    """Hooks that leave out every second channel along ``axis``, and put zeros in their places."""

    def __init__(self, axis: int) -> None:
        self.axis, self.channels = axis, 0

    def left(self, _module: nn.Module, _args: object, output: Tensor) -> Tensor:
        """Of an output, every second channel."""
        self.channels = output.shape[self.axis]
        return output.index_select(self.axis, self._index(output))

    def whole(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Of a call's first argument, whole or narrowed, all channels, every second one zero."""
        if args:
            return (self._filled(args[0]), *args[1:]), kwargs
        name, x = next(iter(kwargs.items()))
        return args, {**kwargs, name: self._filled(x)}

    def _filled(self, x: Tensor) -> Tensor:
        kept = x if self.channels else x.index_select(self.axis, self._index(x))
        shape = list(x.shape)
        shape[self.axis] = self.channels or shape[self.axis]
        zeros = x.new_zeros(shape)
        return zeros.index_copy(self.axis, self._index(zeros), kept)

    def _index(self, x: Tensor) -> Tensor:
        return torch.arange(0, x.shape[self.axis], 2, device=x.device)


def topped(index: Tensor, channels: int) -> Tensor:
    """The channels ``index`` and as many others as make their number a multiple of ``LANES``, ascending."""
    others = torch.ones(channels, dtype=torch.bool, device=index.device).index_fill(0, index, False).nonzero()[:, 0]
    return torch.cat([index, others[: lanes(len(index), channels) - len(index)]]).sort().values


def lanes(count: int, channels: int) -> int:
    """``count`` of ``channels``, or as many more as make a multiple of ``LANES``."""
    return min(channels, count + -count % LANES)


def last(module: nn.Module) -> nn.Linear | Conv | None:
    """The layer whose rows are the outputs of ``module``, a layer or several in sequence; None if there is none."""
    if isinstance(module, nn.Sequential) and len(module):
        return last(module[-1])
    return module if isinstance(module, nn.Linear) or (isinstance(module, Conv) and module.groups == 1) else None


@torch.no_grad()
def keep_outputs(layer: nn.Linear | Conv, index: Tensor) -> None:
    """Leave the outputs ``index`` of a layer, dense or depthwise, in place."""
    layer.weight = nn.Parameter(layer.weight[index].clone(), requires_grad=False)
    layer.bias = None if layer.bias is None else nn.Parameter(layer.bias[index].clone(), requires_grad=False)
    if isinstance(layer, nn.Linear):
        layer.out_features = len(index)
        return
    layer.out_channels = len(index)
    if layer.groups > 1:
        layer.in_channels = layer.groups = len(index)
