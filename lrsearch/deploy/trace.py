"""Tensors followed from layer to layer: which channels of what a layer reads are those of another layer's outputs, one by one."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lrsearch.compress.inventory import DENSE_FORWARDS
from lrsearch.compress.matricize import Conv
from lrsearch.compress.modules import CompressedLayer
from lrsearch.task.forward import first_tensor, named_tensors

UNTAGGED = ("aten.hardswish", "aten.dropout")  # pointwise too


@dataclass(frozen=True)
class Link:
    """A step from one tensor to the next.

    Attributes:
        module: that makes it; None where a function of each value does.
        output: id of what it makes.
        shape: of what it reads.
    """

    module: nn.Module | None
    output: int
    shape: tuple[int, ...]


class Tracker(TorchDispatchMode):
    """Follows tensors while it is on, and :meth:`enter` and :meth:`leave` are hooks of the modules without children.

    Attributes:
        calls: module → how often it was called.
        shape: module → shape of its last input.
        fed: layer → links from the layer whose outputs it reads, channel by channel, to what it reads.
        spoilt: ids of what is read by others than one module or one function of each value.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[nn.Module] = Counter()
        self.shape: dict[nn.Module, tuple[int, ...]] = {}
        self.fed: dict[nn.Module, tuple[Link, ...]] = {}
        self.spoilt: set[int] = set()
        self._chains: dict[int, tuple[Link, ...]] = {}  # id of an output → what made it
        self._reads: Counter[int] = Counter()
        self._outputs: set[int] = set()
        self._alive: list[Any] = []  # so that ids stay their own
        self._inside = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if not self._inside:
            tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.dim()]
            if len(tensors) == 1 and id(tensors[0]) in self._chains and _pointwise(func):
                (x,) = tensors
                self._read(x)
                self._chains[id(output)] = (*self._chains.pop(id(x)), Link(None, id(output), tuple(x.shape)))
                self._made(x, output)
            else:
                self.spoil(args, kwargs)
        return output

    def spoil(self, *values: Any) -> None:
        """Note that ``values`` are read by what is not followed."""
        self.spoilt |= {id(t) for t in named_tensors(values).values()} & self._outputs

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A module is called, by position or by keyword."""
        self._inside = True
        self.calls[module] += 1
        given = list(named_tensors((args, kwargs)).values())
        self.spoil(given[1:])
        for x in given[:1]:
            self._read(x)

    def leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """It returns."""
        x = first_tensor(args, kwargs)
        if x is not None and isinstance(output, Tensor):
            chain, self.shape[module] = self._chains.pop(id(x), ()), tuple(x.shape)
            if chain and channels_last(chain[0].module) == channels_last(module) and _mixes(module):
                self.fed[module] = chain
            if _mixes(module):
                self._chains[id(output)] = (Link(module, id(output), tuple(x.shape)),)
            elif chain and len(args) + len(kwargs) == 1 and _by_channel(module, x, output, -1 if channels_last(chain[0].module) else 1):
                self._chains[id(output)] = (*chain, Link(module, id(output), tuple(x.shape)))
        self._made(x, output)
        self._inside = False

    def _read(self, x: Tensor) -> None:
        self._reads[id(x)] += 1
        if self._reads[id(x)] > 1:
            self.spoil(x)

    def _made(self, x: Any, output: Any) -> None:
        self._alive += [x, output]
        self._outputs.add(id(output))
        if output is x:
            self._reads[id(x)] = 0


def _pointwise(func: Any) -> bool:
    """Whether it computes each value from the one in its place."""
    return isinstance(func, OpOverload) and (torch.Tag.pointwise in func.tags or any(n in str(func) for n in UNTAGGED))


def channels_last(module: nn.Module | None) -> bool:
    """Whether the channels of what it makes are the last axis."""
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
    try:
        tried = torch.empty_like(x).normal_(generator=torch.Generator(x.device).manual_seed(0))
        fewer = module.forward(tried.index_select(axis, some))
        return torch.allclose(fewer, module.forward(tried).index_select(axis, some), rtol=1e-4, atol=1e-5)
    except Exception:  # it does not take fewer channels, or no numbers at all
        return False
