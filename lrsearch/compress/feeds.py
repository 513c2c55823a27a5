"""What feeds a layer alone, channel by channel: the outputs behind a column that the layer drops need not be computed at all.

In an inverted residual the projection is fed by the expansion, through a depthwise convolution; in a transformer the second layer of
an MLP by the first. Where such a layer drops whole columns, the outputs that only they read, and their depthwise filters, go too.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lrsearch.compress.inventory import DENSE_FORWARDS, inference
from lrsearch.compress.matricize import Conv
from lrsearch.compress.modules import CompressedLayer
from lrsearch.spec.plan import LayerPlan

LANES = 16  # channels that runtimes keep side by side; other numbers of them can take longer than all


@dataclass(frozen=True)
class Feed:
    """A layer and what alone feeds it.

    Attributes:
        producer: name of the layer whose outputs become the fed layer's inputs, each from the one of its channel, and go nowhere else.
        between: names of what is between them, in order: depthwise convolutions, and modules without weights that treat every
            channel by itself.
        shapes: of the inputs of the producer, of each between, and of the fed layer.
    """

    producer: str
    between: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]


def feeds(model: nn.Module, sample: Tensor) -> dict[str, Feed]:
    """Layer name → its feed, for the layers that have one; found by a forward pass.

    Args:
        model: dense or compressed; what is called more than once, or read otherwise than by a module, feeds nothing.
        sample: a batch that it accepts.
    """
    tracker = _Tracker()
    leaves = [m for m in model.modules() if isinstance(m, CompressedLayer) or not list(m.children())]
    hooks = [m.register_forward_pre_hook(tracker.enter, with_kwargs=True) for m in leaves]
    hooks += [m.register_forward_hook(tracker.leave) for m in leaves]
    try:
        with inference(model), tracker:
            tracker.spoil(model(sample))
    finally:
        for hook in hooks:
            hook.remove()
    names = {m: n for n, m in model.named_modules()}
    found = {}
    for layer, chain in tracker.fed.items():
        if all(tracker.calls[m] == 1 for m in (layer, *(link.module for link in chain))) and not tracker.spoilt & {c.output for c in chain}:
            producer, *between = chain
            shapes = (*(link.shape for link in chain), tracker.shape[layer])
            found[names[layer]] = Feed(names[producer.module], tuple(names[link.module] for link in between), shapes)
    return found


def drops_columns(plan: LayerPlan) -> bool:
    """Whether a layer under ``plan`` reads some of its channels not at all."""
    return not plan.rank and plan.pattern == "column" and 0 < plan.density < 1


def topped(index: Tensor, channels: int) -> Tensor:
    """The channels ``index`` and as many others as make their number a multiple of ``LANES``, ascending."""
    others = torch.ones(channels, dtype=torch.bool, device=index.device).index_fill(0, index, False).nonzero()[:, 0]
    return torch.cat([index, others[: -len(index) % LANES]]).sort().values


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


@dataclass(frozen=True)
class _Link:
    module: nn.Module
    output: int  # id of the tensor
    shape: tuple[int, ...]


class _Tracker(TorchDispatchMode):
    """Follows tensors from layer to layer, while it is on."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[nn.Module] = Counter()
        self.shape: dict[nn.Module, tuple[int, ...]] = {}
        self.fed: dict[nn.Module, tuple[_Link, ...]] = {}
        self.spoilt: set[int] = set()  # ids of outputs that are read by others than one module
        self._chains: dict[int, tuple[_Link, ...]] = {}  # id of an output → what made it
        self._reads: Counter[int] = Counter()
        self._outputs: set[int] = set()
        self._alive: list[Any] = []  # so that ids stay their own
        self._inside = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self._inside:
            self.spoil(args, kwargs)
        return func(*args, **(kwargs or {}))

    def spoil(self, *values: Any) -> None:
        self.spoilt |= {id(t) for t in tree_leaves(values)} & self._outputs

    def enter(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._inside = True
        self.calls[module] += 1
        self._reads.update(map(id, inputs[:1]))
        self.spoil(named, inputs[1:], [x for x in inputs[:1] if self._reads[id(x)] > 1 or not isinstance(x, Tensor)])

    def leave(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        x = next(iter(inputs), None)
        self._alive += [x, output]
        self._outputs.add(id(output))
        if isinstance(x, Tensor) and isinstance(output, Tensor):
            chain, self.shape[module] = self._chains.pop(id(x), ()), tuple(x.shape)
            if chain and _channels_last(chain[0].module) == _channels_last(module) and _mixes(module):
                self.fed[module] = chain
            link = _Link(module, id(output), tuple(x.shape))
            if _mixes(module):
                self._chains[id(output)] = (link,)
            elif chain and _by_channel(module, x, output, -1 if _channels_last(chain[0].module) else 1):
                self._chains[id(output)] = (*chain, link)
            if output is x:
                self._reads[id(x)] = 0
        self._inside = False


def _channels_last(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, CompressedLayer) and module.convolution is None)


def _mixes(module: nn.Module) -> bool:
    """Whether it is a layer each of whose outputs reads all channels."""
    if isinstance(module, CompressedLayer):
        return module.spec.groups == 1
    return _dense(module) and getattr(module, "groups", 1) == 1


def _dense(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv) and type(module).forward in DENSE_FORWARDS and not parametrize.is_parametrized(module)


def _by_channel(module: nn.Module, x: Tensor, output: Tensor, axis: int) -> bool:
    """Whether each channel of ``output`` comes from the same one of ``x`` alone; tried on random values, as those of a sample may be
    alike."""
    if isinstance(module, Conv):
        return _dense(module) and module.groups == module.in_channels == module.out_channels
    if [*module.parameters(), *module.buffers()] or output.dim() != x.dim() or output.shape[axis] != x.shape[axis]:
        return False
    some = torch.arange(0, x.shape[axis], 2, device=x.device)
    tried = torch.empty_like(x).normal_(generator=torch.Generator(x.device).manual_seed(0))
    try:
        fewer = module.forward(tried.index_select(axis, some))
        return torch.allclose(fewer, module.forward(tried).index_select(axis, some), rtol=1e-4, atol=1e-5)
    except Exception:  # it does not take fewer channels
        return False
