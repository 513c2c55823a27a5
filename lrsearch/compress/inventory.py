"""What of a model can be compressed, and what cannot, with the reason."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from timm.layers import Conv2dSame
from timm.layers import Linear as TimmLinear
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lrsearch.errors import ModelError
from lrsearch.spec.layer import LayerSpec

_READERS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
_FORWARDS = {nn.Linear.forward, TimmLinear.forward, nn.Conv2d.forward, Conv2dSame.forward}


@dataclass(frozen=True)
class Inventory:
    """``layers`` can be compressed; ``refused`` maps the other weight-bearing modules to a reason."""

    layers: tuple[LayerSpec, ...]
    refused: dict[str, str]


@contextmanager
def inference(model: nn.Module) -> Iterator[nn.Module]:
    """``model`` in eval mode without gradients; its modes are put back afterwards."""
    modes = {m: m.training for m in model.modules()}
    model.eval()
    try:
        with torch.inference_mode():
            yield model
    finally:
        for module, mode in modes.items():
            module.training = mode


def inventory(model: nn.Module, sample: Tensor) -> Inventory:
    """List the compressible layers of ``model`` by one forward pass over ``sample``.

    Args:
        model: any module; left as it was.
        sample: a batch the model accepts.

    Raises:
        ModelError: the model does not accept the sample, or nothing in it can be compressed.
    """
    positions: Counter[str] = Counter()
    names: dict[nn.Module, str] = {m: n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}

    def count(module: nn.Module, _: object, output: Tensor) -> None:
        width = output.shape[-1] if isinstance(module, nn.Linear) else output.shape[-3]
        positions[names[module]] += -(-output.numel() // width // len(sample))

    hooks = [m.register_forward_hook(count) for m in names]
    try:
        with inference(model):
            model(sample)
    except Exception as error:
        raise ModelError(
            "the model must accept a batch of the calibration data", value=f"{type(error).__name__}: {error}",
            place=f"forward pass over {tuple(sample.shape)}", remedy="Match the data's shape and type to the model.",
        ) from error
    finally:
        for hook in hooks:
            hook.remove()

    refused = _refusals(model, names, positions)
    layers = tuple(layer_spec(m, n, positions[n]) for m, n in names.items() if n not in refused)
    if not layers:
        raise ModelError(
            "the model needs at least one Linear or Conv2d layer that can be compressed",
            value="; ".join(f"{k}: {v}" for k, v in refused.items()) or "none of either",
            place=type(model).__name__, remedy="Bring a model with such layers.",
        )
    return Inventory(layers, refused)


def layer_spec(module: nn.Module, name: str, positions: int = 0) -> LayerSpec:
    """Spec of one Linear or Conv2d; ``positions`` stays 0 where only the weight matters."""
    shape = tuple(module.get_parameter("weight").shape)
    if isinstance(module, nn.Conv2d):
        return LayerSpec(name, "conv2d", shape, module.groups, positions)
    return LayerSpec(name, "linear", shape, 1, positions)


def _refusals(model: nn.Module, names: dict[nn.Module, str], positions: Counter[str]) -> dict[str, str]:
    uses = Counter(id(p) for m in model.modules() for p in m._parameters.values() if p is not None)
    attention = {c for m in model.modules() if isinstance(m, _READERS) for c in m.modules()}
    refused = {}
    for name, module in model.named_modules():
        weighty = isinstance(module, nn.modules.conv._ConvNd | nn.Linear | nn.Bilinear | nn.Embedding)
        if weighty and (reason := _reason(module, names, uses, attention, positions[name])):
            refused[name] = reason
    return refused


def _reason(module: nn.Module, names: dict[nn.Module, str], uses: Counter[int], attention: set[nn.Module], positions: int) -> str:
    if module not in names:
        return f"{type(module).__name__} is not supported"
    if not names[module]:
        return "it is the model itself; wrap it in nn.Sequential"
    if parametrize.is_parametrized(module) or "weight" not in module._parameters:
        return "its weight is parametrised (weight norm or similar); remove the parametrisation first"
    if type(module).forward not in _FORWARDS:
        return f"{type(module).__name__} computes its weight in a forward of its own"
    if uses[id(module._parameters["weight"])] > 1:
        return "its weight is tied to another module's"
    if module in attention:
        return "its parent, nn.MultiheadAttention or nn.TransformerEncoderLayer, reads its weight without calling it"
    if not positions:
        return "it was not called in the forward pass"
    return ""
