"""What is to be timed: each distinct layer alone, in every form that its choices give it."""

import copy
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lrsearch.compress.matricize import Conv, Convolution
from lrsearch.compress.modules import CompressedLayer
from lrsearch.compress.sparsify import allowed_atoms, pack_bits
from lrsearch.deploy.plain_layers import plain
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.pattern import pattern
from lrsearch.spec.plan import LayerPlan
from lrsearch.task.forward import Inputs, first_tensor, forward, inference

Calls = dict[str, tuple[str, ...]]


def calls(model: nn.Module, names: Iterable[str], sample: Inputs) -> Calls:
    """Layer name → the signature of each of its calls in a forward pass over ``sample``.

    A signature is all that a layer's latency depends on: kind, shapes, stride, padding, dilation, groups.
    """
    layers = {model.get_submodule(name): name for name in names}
    found: dict[str, list[str]] = {name: [] for name in layers.values()}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = first_tensor(args, kwargs)
        assert x is not None
        found[layers[module]].append(signature(module, tuple(x.shape)))

    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    try:
        with inference(model):
            forward(model, sample)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: tuple(each) for name, each in found.items()}


def signature(layer: nn.Module, shape: tuple[int, ...]) -> str:
    """For example ``conv2d 16x8x3x3 on 1x8x32x32, stride 1x1, padding 1-1-1-1 constant, dilation 1x1, groups 1``."""
    on = f"{'x'.join(map(str, layer.get_parameter('weight').shape))} on {'x'.join(map(str, shape))}"
    if isinstance(layer, nn.Linear):
        return f"linear {on}"
    assert isinstance(layer, Conv)
    rule = Convolution.of(layer)
    padding = "same" if rule.same else f"{'-'.join(map(str, rule.amounts))} {rule.mode}"
    stride, dilation = ("x".join(map(str, pair)) for pair in (rule.stride, rule.dilation))
    return f"conv{len(layer.kernel_size)}d {on}, stride {stride}, padding {padding}, dilation {dilation}, groups {layer.groups}"


def shape_of(signature: str) -> tuple[int, ...]:
    """The input shape in a signature."""
    return tuple(map(int, signature.partition(" on ")[2].partition(",")[0].split("x")))


@dataclass(frozen=True)
class Job:
    """One layer alone: ``choice`` of a layer with ``signature``."""

    signature: str
    layer: LayerSpec
    base: nn.Module
    choice: LayerPlan

    @property
    def key(self) -> str:
        """What a table calls it, among those of the same signature."""
        return str(self.choice)

    def module(self) -> tuple[nn.Module, Tensor]:
        """The layer with random values and a bias, and an input for it.

        Convolutions stand between two others, as in a network: runtimes keep images in blocks of channels between
        convolutions, and a form that leaves this layout must be seen to pay for it.
        """
        weight = self.base.get_parameter("weight")
        module = alone(with_bias(self.base), self.layer, self.choice)
        if isinstance(self.base, Conv):
            module = nn.Sequential(neighbour(self.base, self.base.in_channels), module, neighbour(self.base, self.base.out_channels))
        return module.requires_grad_(False), torch.randn(shape_of(self.signature), dtype=weight.dtype)


def jobs(model: nn.Module, layers: Sequence[LayerSpec], menus: Mapping[str, Sequence[LayerPlan]], called: Calls) -> list[Job]:
    """Every distinct (signature, choice as executed), dense ones included."""
    found: dict[tuple[str, LayerPlan], Job] = {}
    for layer in layers:
        base = model.get_submodule(layer.name)
        for each in called[layer.name]:
            for choice in (LayerPlan(), *(plan.executed for plan in menus[layer.name])):
                found.setdefault((each, choice), Job(each, layer, base, choice))
    return list(found.values())


def neighbour(layer: Conv, channels: int) -> nn.Module:
    """The cheapest convolution: one value a channel."""
    return type(layer)(channels, channels, 1, groups=channels, dtype=layer.weight.dtype)


def with_bias(base: nn.Module) -> nn.Module:
    """A copy of ``base``; with a random bias, as of a BatchNorm folded into it, if it has none."""
    base = copy.deepcopy(base).eval().cpu()
    if getattr(base, "bias", None) is None:
        weight = base.get_parameter("weight")
        base.bias = nn.Parameter(torch.randn(len(weight), dtype=weight.dtype))
    return base


def alone(base: nn.Module, layer: LayerSpec, choice: LayerPlan) -> nn.Module:
    """``base`` deployed under ``choice``, with random values."""
    assert isinstance(base, nn.Linear | Conv)
    if choice.executed.untouched:
        return base.requires_grad_(False)
    return plain(randomised(CompressedLayer(base, layer, choice))).requires_grad_(False)


@torch.no_grad()
def randomised(layer: CompressedLayer) -> CompressedLayer:
    """``layer`` with random factors, and an S whose whole columns or rows are anywhere; its outputs about as large as its inputs.

    Larger ones are not only unlike a network: an attention that sees them has probabilities that are subnormal numbers, with which
    its softmax and the product behind it take more than twice the time.
    """
    values = [] if layer.values is None else [layer.values]
    for parameter in (*layer.factors, *values):
        parameter.normal_()
    if layer.bitmask is not None:
        kind = pattern(layer.plan.pattern)
        chosen = torch.randperm(kind.choosable(layer.spec)) < layer.plan.kept(layer.spec) // kind.atom(layer.spec)
        if (allowed := allowed_atoms(kind, layer.spec)) is not None:
            chosen = torch.zeros(kind.atoms(layer.spec), dtype=torch.bool).index_put_((allowed,), chosen)
        layer.bitmask = pack_bits(chosen)
        layer.unpack()
    size = layer.whole_weight().norm() / layer.spec.rows**0.5
    for parameter in (*layer.factors[:1], *values):
        parameter.div_(size)
    return layer


class _Trace(TorchDispatchMode):
    """Every operator with the shapes it reads."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        shapes = [tuple(t.shape) if isinstance(t, Tensor) else t for t in tree_leaves((args, kwargs))]
        self.seen.append(f"{func} {shapes}")
        return func(*args, **(kwargs or {}))


def architecture(model: nn.Module, sample: Inputs) -> str:
    """A digest of all that ``model`` computes on ``sample`` but the values."""
    with inference(model), _Trace() as trace:
        forward(model, sample)
    return hashlib.sha256("\n".join(trace.seen).encode()).hexdigest()[:16]
