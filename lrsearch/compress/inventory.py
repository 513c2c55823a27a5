"""What of a model can be compressed, and what cannot, with the reason."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from timm.layers import Conv2dSame
from timm.layers import Linear as TimmLinear
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lrsearch.compress.matricize import Conv
from lrsearch.errors import ModelError
from lrsearch.spec.layer import LayerSpec
from lrsearch.task.forward import Inputs, examples_in, first_tensor, forward, inference, rows, shapes
from lrsearch.task.memory import out_of_memory, too_large

_READERS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
DENSE_FORWARDS = {nn.Linear.forward, TimmLinear.forward, nn.Conv1d.forward, nn.Conv2d.forward, Conv2dSame.forward}
MOST_COLUMNS = 16384


@dataclass(frozen=True)
class Inventory:
    """``layers`` can be compressed; ``refused`` maps the other weight-bearing modules to a reason."""

    layers: tuple[LayerSpec, ...]
    refused: dict[str, str]


def inventory(model: nn.Module, sample: Inputs) -> Inventory:
    """List the compressible layers of ``model`` by one forward pass over ``sample``.

    Args:
        model: any module; left as it was.
        sample: a batch the model accepts; its first example is used, so that what a model computes
            once a batch counts as for a batch of one.

    Raises:
        ModelError: the model does not accept the sample, or nothing in it can be compressed.
    """
    sample, seen = rows(sample, slice(0, 1)), dict[str, tuple[int, int, int]]()
    names: dict[nn.Module, str] = {m: n for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv)}

    def count(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        before, x = seen.get(names[module], (0, 0, 0)), first_tensor(args, kwargs)
        assert x is not None
        now = _positions(module, x, output, examples_in(sample))
        seen[names[module]] = (before[0] + now[0], before[1] + now[1], before[2] + now[2])

    hooks = [m.register_forward_hook(count, with_kwargs=True) for m in names]
    try:
        with inference(model):
            forward(model, sample)
    except Exception as error:
        if out_of_memory(error):
            raise too_large(error) from error
        raise ModelError(
            "the model must accept a batch of the calibration data", value=f"{type(error).__name__}: {error}",
            place=f"forward pass over {shapes(sample)}", remedy="Match the data's shape and type to the model.",
        ) from error
    finally:
        for hook in hooks:
            hook.remove()

    refused = _refusals(model, names, seen)
    layers = tuple(layer_spec(m, n, *seen[n]) for m, n in names.items() if n not in refused)
    if not layers:
        raise ModelError(
            "the model needs at least one Linear, Conv1d or Conv2d layer that can be compressed",
            value="; ".join(f"{k}: {v}" for k, v in refused.items()) or "none of these",
            place=type(model).__name__, remedy="Bring a model with such layers.",
        )
    return Inventory(layers, refused)


def _positions(module: nn.Module, x: Tensor, y: Tensor, examples: int) -> tuple[int, int, int]:
    """Output, input and height-strided positions per example of one call."""
    if isinstance(module, nn.Linear):
        out = -(-y.numel() // y.shape[-1] // examples)
        return out, out, out
    calls = -(-y.numel() // prod(y.shape[-len(module.kernel_size) - 1 :]) // examples)  # type: ignore[arg-type]
    (h, w), (high, wide) = (1, *y.shape)[-2:], (1, *x.shape)[-2:]
    if isinstance(module, nn.Conv1d):
        h, high = 1, 1
    return calls * h * w, calls * high * wide, calls * h * wide


def layer_spec(module: nn.Module, name: str, positions: int = 0, input_positions: int = 0, half_positions: int = 0) -> LayerSpec:
    """Spec of one Linear, Conv1d or Conv2d; the positions stay 0 where only the weight matters."""
    shape = tuple(module.get_parameter("weight").shape)
    kind: Literal["linear", "conv1d", "conv2d"] = "linear"
    if isinstance(module, Conv):
        kind = "conv1d" if isinstance(module, nn.Conv1d) else "conv2d"
    groups = module.groups if isinstance(module, Conv) else 1
    return LayerSpec(name, kind, shape, groups, positions, input_positions, half_positions, module.get_parameter("weight").itemsize)


def _refusals(model: nn.Module, names: dict[nn.Module, str], seen: Collection[str]) -> dict[str, str]:
    uses = Counter(id(p) for m in model.modules() for p in m._parameters.values() if p is not None)
    attention = {c for m in model.modules() if isinstance(m, _READERS) for c in m.modules()}
    refused = {}
    for name, module in model.named_modules():
        weighty = isinstance(module, nn.modules.conv._ConvNd | nn.Linear | nn.Bilinear | nn.Embedding)
        if weighty and (reason := _reason(module, names, uses, attention)):
            refused[name] = reason
        elif weighty and name not in seen:
            refused[name] = "it was not called in the forward pass"
    return refused


def _reason(module: nn.Module, names: dict[nn.Module, str], uses: Counter[int], attention: set[nn.Module]) -> str:
    if module not in names:
        return f"{type(module).__name__} is not supported"
    if not names[module]:
        return "it is the model itself; wrap it in nn.Sequential"
    if parametrize.is_parametrized(module) or "weight" not in module._parameters:
        return "its weight is parametrised (weight norm or similar); remove the parametrisation first"
    if type(module).forward not in DENSE_FORWARDS:
        return f"{type(module).__name__} computes its weight in a forward of its own"
    if extra := module.state_dict().keys() - {"weight", "bias"}:
        return f"it has {min(extra)} beside its weight and bias"
    if uses[id(module._parameters["weight"])] > 1:
        return "its weight is tied to another module's"
    if module in attention:
        return "its parent, nn.MultiheadAttention or nn.TransformerEncoderLayer, reads its weight without calling it"
    weight = module.get_parameter("weight")
    if (columns := prod(weight.shape[1:])) > MOST_COLUMNS:
        return f"its Gram matrix would have {columns} columns; at most {MOST_COLUMNS} are fitted"
    if not weight.is_floating_point() or not bool(weight.isfinite().all()):
        return "its weight is not finite floating point"
    return ""
