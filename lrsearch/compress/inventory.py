"""What of a model can be compressed, and what cannot, with the reason."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from timm.layers import Conv2dSame
from timm.layers import Linear as TimmLinear
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lrsearch.compress import attention
from lrsearch.compress.matricize import Conv
from lrsearch.compress.modules import Layer
from lrsearch.compress.nd_convolution import NdConv, Transposed
from lrsearch.compress.parametrised import copied
from lrsearch.errors import ModelError
from lrsearch.spec.layer import WIDEST, Kind, LayerSpec
from lrsearch.task.forward import Inputs, examples_in, first_tensor, forward, inference, rows, shapes
from lrsearch.task.memory import out_of_memory, too_large

DENSE_FORWARDS = {nn.Linear.forward, TimmLinear.forward, nn.Conv1d.forward, nn.Conv2d.forward, Conv2dSame.forward}
_FORWARDS = DENSE_FORWARDS | {nn.Conv3d.forward, nn.ConvTranspose1d.forward, nn.ConvTranspose2d.forward, nn.ConvTranspose3d.forward}
_KINDS: dict[type[nn.Module], Kind] = {
    nn.Linear: "linear", nn.Conv1d: "conv1d", nn.Conv2d: "conv2d", nn.Conv3d: "conv3d", nn.ConvTranspose1d: "conv_transpose1d",
    nn.ConvTranspose2d: "conv_transpose2d", nn.ConvTranspose3d: "conv_transpose3d",
}
_READ = {
    nn.RNNBase: "computes with its matrices in a kernel of its own, step by step",
    nn.RNNCellBase: "computes with its matrices in a kernel of its own",
    nn.Embedding: "reads rows of its matrix and multiplies nothing with it",
    nn.EmbeddingBag: "reads rows of its matrix and multiplies nothing with it",
    nn.Bilinear: "is not supported",
}


@dataclass(frozen=True)
class Inventory:
    """What owns weight matrices in a model.

    Attributes:
        layers: can be compressed.
        refused: what stays dense → the reason: modules by name, and by parameter name the matrices that other modules
            compute with themselves.
        shares: of the model's values, for all of both; what is tied counts where it is named first.
    """

    layers: tuple[LayerSpec, ...]
    refused: dict[str, str]
    shares: dict[str, float] = field(default_factory=dict)

    def without(self, reasons: Mapping[str, str]) -> "Inventory":
        """The same with more layers refused."""
        layers = tuple(layer for layer in self.layers if layer.name not in reasons)
        return Inventory(layers, {**self.refused, **reasons}, self.shares)

    def largest_dense(self, most: int = 3) -> str:
        """The largest of what stays dense, as ``"name (12 %: reason)"``; empty if nothing does."""
        names = sorted(self.refused, key=lambda n: -self.shares.get(n, 0.0))[:most]
        return ", ".join(f"{n} ({self.shares.get(n, 0.0):.0%}: {self.refused[n]})" for n in names)


def inventory(model: nn.Module, sample: Inputs, others: Iterable[Inputs] = ()) -> Inventory:
    """List what owns weight matrices in ``model``: what can be compressed, and why the rest cannot.

    Args:
        model: any module; left as it was.
        sample: a batch the model accepts; positions are those of its first example, so that what a model computes
            once a batch counts as for a batch of one.
        others: further batches, read only until every layer has been called: some examples reach only some experts.
            A layer that the first example does not reach has no positions, and counts no multiply-accumulates.

    Raises:
        ModelError: the model does not accept the sample, or nothing in it can be compressed.
    """
    model = copied(model)  # some models change themselves as they run
    first, seen = rows(sample, slice(0, 1)), dict[str, tuple[int, int, int]]()
    names: dict[nn.Module, str] = {m: n for n, m in model.named_modules() if isinstance(m, Layer)}

    def count(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        before, x = seen.get(names[module], (0, 0, 0)), first_tensor(args, kwargs)
        now = (0, 0, 0) if x is None else _positions(module, x, output, examples_in(first))
        seen[names[module]] = (before[0] + now[0], before[1] + now[1], before[2] + now[2])

    def reach(module: nn.Module, *_: Any) -> None:
        seen.setdefault(names[module], (0, 0, 0))

    _run(model, names, count, first)
    for batch in (sample, *others) if len(seen) < len(names) else ():
        _run(model, names, reach, batch)
        if len(seen) == len(names):
            break

    ties = _ties(model)
    refused = _refusals(model, names, seen, ties)
    layers = tuple(_summed(m, n, seen, ties) for m, n in names.items() if n not in refused and ties[n][0] == n)
    if not layers:
        raise ModelError(
            "the model needs at least one Linear layer or convolution that can be compressed",
            value="; ".join(f"{k}: {v}" for k, v in refused.items()) or "none of these",
            place=type(model).__name__, remedy="Bring a model with such layers.",
        )
    return Inventory(layers, refused, _shares(model, [layer.name for layer in layers], refused))


def _run(model: nn.Module, names: Collection[nn.Module], hook: Callable[..., None], inputs: Inputs) -> None:
    """One forward pass with ``hook`` on all of ``names``."""
    hooks = [m.register_forward_hook(hook, with_kwargs=True) for m in names]
    try:
        with inference(model):
            forward(model, inputs)
    except Exception as error:
        if out_of_memory(error):
            raise too_large(error) from error
        raise ModelError(
            "the model must accept a batch of the calibration data", value=f"{type(error).__name__}: {error}",
            place=f"forward pass over {shapes(inputs)}", remedy="Match the data's shape and type to the model.",
        ) from error
    finally:
        for handle in hooks:
            handle.remove()


def _positions(module: nn.Module, x: Tensor, y: Tensor, examples: int) -> tuple[int, int, int]:
    """Output, input and height-strided positions per example of one call."""
    if isinstance(module, nn.Linear):
        out = -(-y.numel() // y.shape[-1] // examples)
        return out, out, out
    assert isinstance(module, Conv | NdConv)
    dims = len(module.kernel_size)
    calls = -(-y.numel() // prod(y.shape[-dims - 1 :]) // examples)
    if isinstance(module, NdConv):
        out, into = prod(y.shape[-dims:]), prod(x.shape[-dims:])
        out = into if isinstance(module, Transposed) else out
        return calls * out, calls * into, calls * out
    (h, w), (high, wide) = (1, *y.shape)[-2:], (1, *x.shape)[-2:]
    if isinstance(module, nn.Conv1d):
        h, high = 1, 1
    return calls * h * w, calls * high * wide, calls * h * wide


def layer_spec(
    module: nn.Module, name: str, positions: int = 0, input_positions: int = 0, half_positions: int = 0, tied: tuple[str, ...] = (),
) -> LayerSpec:
    """Spec of one layer; the positions stay 0 where only the weight matters."""
    weight = module.get_parameter("weight")
    kind = next(kind for each, kind in _KINDS.items() if isinstance(module, each))
    groups = 1 if isinstance(module, nn.Linear) else int(module.groups)  # type: ignore[arg-type]
    return LayerSpec(name, kind, tuple(weight.shape), groups, positions, input_positions, half_positions, weight.itemsize, tied)


def tied_names(model: nn.Module, name: str) -> tuple[str, ...]:
    """Names of the other modules that have the weight of the layer ``name``."""
    return tuple(n for n in _ties(model)[name] if n != name)


def _ties(model: nn.Module) -> dict[str, list[str]]:
    """Layer name → names of the layers with the same weight, in the model's order, itself among them."""
    groups: dict[int, list[str]] = defaultdict(list)
    weights = {n: m._parameters.get("weight") for n, m in model.named_modules() if isinstance(m, Layer)}
    for name, weight in weights.items():
        groups[id(weight) if weight is not None else id(name)].append(name)
    return {name: group for group in groups.values() for name in group}


def _summed(module: nn.Module, name: str, seen: Mapping[str, tuple[int, int, int]], ties: Mapping[str, list[str]]) -> LayerSpec:
    """The spec of all modules with one weight."""
    positions = [sum(column) for column in zip(*(seen.get(n, (0, 0, 0)) for n in ties[name]), strict=True)]
    out, into, half = positions
    return layer_spec(module, name, out, into, half, tuple(ties[name][1:]))


def _refusals(model: nn.Module, names: dict[nn.Module, str], seen: Collection[str], ties: Mapping[str, list[str]]) -> dict[str, str]:
    uses: dict[int, set[str]] = defaultdict(set)
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            uses[id(parameter)].add(name)
    hidden = {c for m in model.modules() if _reads_children(m) for c in m.modules()}
    refused: dict[str, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, Layer):
            group = ties[name]
            if reason := _reason(module, name, model, uses[id(module._parameters.get("weight"))] - set(group), module in hidden):
                refused[name] = reason
            elif not set(group) & set(seen):
                refused[name] = "it was not called for any of the calibration data"
        else:
            refused |= _other(name, module)
    for name in [n for n in names.values() if n not in refused]:  # one decision for all with the same weight
        if blamed := next((n for n in ties[name] if n in refused), None):
            refused[name] = f"its weight is tied to {blamed}, which stays dense"
        elif len({_kind(model.get_submodule(n)) for n in ties[name]}) > 1:
            refused[name] = "its weight is tied to a layer of another kind"
    return {name: refused[name] for name, _ in [*model.named_modules(), *model.named_parameters()] if name in refused}


def _kind(module: nn.Module) -> tuple[object, ...]:
    return next(kind for each, kind in _KINDS.items() if isinstance(module, each)), getattr(module, "groups", 1)


def _reads_children(module: nn.Module) -> bool:
    """Whether ``module`` computes with weights of its children without calling these."""
    if isinstance(module, attention.Attention):
        return False
    if isinstance(module, nn.TransformerEncoderLayer):
        return not isinstance(module.self_attn, attention.Attention)
    return isinstance(module, nn.MultiheadAttention)


def _other(name: str, module: nn.Module) -> dict[str, str]:
    """What a module that is no layer has of its own."""
    if isinstance(module, parametrize.ParametrizationList):
        return {}  # the layer is named
    own = [key for key, p in module._parameters.items() if p is not None and sum(size > 1 for size in p.shape) > 1]
    if not own:
        return {}
    if isinstance(module, nn.MultiheadAttention):
        return {name: attention.refusal(module) or "its projections are not layers of their own yet"}
    for kind, reason in _READ.items():
        if isinstance(module, kind):
            return {name: f"{type(module).__name__} {reason}"}
    return {f"{name}.{key}".lstrip("."): f"{type(module).__name__} computes with it itself, not through a layer" for key in own}


def _reason(module: Any, name: str, model: nn.Module, others: Collection[str], hidden: bool) -> str:
    if not name:
        return "it is the model itself; wrap it in nn.Sequential"
    if parametrize.is_parametrized(module) or "weight" not in module._parameters:
        return "its weight is parametrised in a way that is not known; remove the parametrisation first"
    if type(module).forward not in _FORWARDS:
        return f"{type(module).__name__} computes its weight in a forward of its own"
    if _overridden(module):
        return f"it is not called as {type(module).__name__} is: {_overridden(module)} was replaced"
    if extra := module.state_dict().keys() - {"weight", "bias"}:
        return f"it has {min(extra)} beside its weight and bias"
    if others:
        other = min(others)
        return f"its weight is tied to that of {other or 'the model itself'}, an {type(model.get_submodule(other)).__name__}"
    if hidden:
        return "its parent, nn.MultiheadAttention or nn.TransformerEncoderLayer, reads its weight without calling it"
    weight = module.get_parameter("weight")
    if not weight.is_floating_point() or not bool(weight.isfinite().all()):
        return "its weight is not finite floating point"
    spec = layer_spec(module, name)
    if min(spec.rows, spec.columns) > WIDEST:
        return f"its matrix has {spec.rows} rows and {spec.columns} columns; one of both may be above {WIDEST}"
    return ""


def _overridden(module: nn.Module) -> str:
    """The first of the methods by which a layer is called that is not torch's own; empty if all are."""
    base = next(each for each in _KINDS if isinstance(module, each))
    for method in ("forward", "_conv_forward", "__call__"):
        changed = method != "forward" and getattr(type(module), method, None) is not getattr(base, method, None)
        if method in vars(module) or changed:
            return method
    return ""


def _shares(model: nn.Module, layers: Iterable[str], refused: Iterable[str]) -> dict[str, float]:
    whole, counted = sum(p.numel() for p in model.parameters()) or 1, set[int]()
    modules = dict(model.named_modules())
    shares = {}
    for name in (*layers, *refused):
        if name in modules:
            own = [p for n, m in modules[name].named_modules() if not n or n.startswith("parametrizations") for p in m._parameters.values()]
        else:
            own = [model.get_parameter(name)]
        fresh = [p for p in own if p is not None and id(p) not in counted]
        counted |= {id(p) for p in fresh}
        shares[name] = sum(p.numel() for p in fresh) / whole
    return shares
