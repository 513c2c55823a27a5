"""How large the inputs of each layer are, by which the supports of S are weighed."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lrsearch.spec.layer import LayerSpec
from lrsearch.task.forward import forward, inference


def input_scales(model: nn.Module, layers: Iterable[LayerSpec], batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Root mean square of each input channel, as a factor for the columns of S.

    Args:
        model: whose layers' inputs count; in eval mode, left as it was.
        layers: specs of those to look at.
        batches: inputs of the model.

    Returns:
        layer name → ``(groups, 1, columns)``; the positions of a kernel share their channel's.
    """
    layers = tuple(layers)
    sums: dict[str, Tensor] = {}

    def hook(layer: LayerSpec) -> object:
        def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            sums[layer.name] = sums.get(layer.name, torch.zeros(())).to(inputs[0].device) + _energy(inputs[0].float(), layer)

        return model.get_submodule(layer.name).register_forward_pre_hook(add)

    handles = [hook(layer) for layer in layers]
    try:
        with inference(model):
            for x in batches:
                forward(model, x)
    finally:
        for handle in handles:
            handle.remove()  # type: ignore[attr-defined]
    return {layer.name: _columns(sums[layer.name], layer) for layer in layers}


def _energy(x: Tensor, layer: LayerSpec) -> Tensor:
    """Sum of squares of each channel of ``x``, ``(channels,)``: the last axis of a linear layer, the one before the image else."""
    channel = x.dim() - (1 if layer.kind == "linear" else len(layer.weight_shape) - 1)
    return x.square().sum([axis for axis in range(x.dim()) if axis != channel])


def _columns(energy: Tensor, layer: LayerSpec) -> Tensor:
    groups, _, columns = layer.matrix_shape
    root = (energy / energy.mean().clamp_min(1e-30)).sqrt().view(groups, 1, -1)
    return root.repeat_interleave(columns // root.shape[-1], -1)
