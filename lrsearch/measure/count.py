"""Model → exact static costs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lrsearch.compress.modules import CompressedLayer
from lrsearch.compress.storage import Storage
from lrsearch.spec.cost import Cost, CostModel, layer_cost
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.metrics import others
from lrsearch.spec.pattern import pattern
from lrsearch.spec.plan import LayerPlan
from lrsearch.spec.storage import ValueType, header_bytes
from lrsearch.task.forward import Inputs, forward, inference, rows


def dense_macs(model: nn.Module, sample: Inputs) -> int:
    """Multiply-accumulates of one example, as torch's own counter has them (it counts two FLOPs each).

    What a model computes once a batch, such as a table of positions, counts as for a batch of one.
    """
    # Of attention, the counter sees the two products only where they are not fused into one CPU kernel.
    with inference(model), _frozen(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        forward(model, rows(sample, slice(0, 1)))
    return int(counter.get_total_flops()) // 2


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No parameter requires a gradient meanwhile: the counter fails on those that do."""
    trained = [p for p in model.parameters() if p.requires_grad]
    try:
        for p in trained:
            p.requires_grad_(False)
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)


def cost_model(model: nn.Module, layers: Sequence[LayerSpec], sample: Inputs, values: ValueType = "float32") -> CostModel:
    """The exact cost of any plan of ``model``, stored as ``values``; what no plan changes is the fixed part."""
    layers = tuple(layers)
    header, macs = header_bytes(layer.name for layer in layers), dense_macs(model, sample)
    whole = Cost(sum(p.numel() for p in model.parameters()), macs, macs)
    weights = sum((layer_cost(layer, LayerPlan()) for layer in layers), Cost())

    def fixed(kind: ValueType) -> Cost:
        own = replace(whole - weights, weight_bytes=header + Storage(layers, kind).rest_bytes(model), more={})
        return replace(own, more={name: metric.rest(own) for name, metric in others().items()})

    return CostModel(fixed(values), layers, fixed("float32") + weights, values)


def recount(model: nn.Module, sample: Inputs) -> Cost:
    """Parameters and MACs of a model as it is, compressed or dense, without looking at a plan; no bytes, no latency."""
    zeros = 0

    def note(layer: CompressedLayer, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal zeros
        spec = layer.spec
        kept = 0 if layer.values is None else len(layer.values)
        runs = kept or layer.factors or spec.plain
        computed = pattern(layer.plan.pattern).computed(layer.spec, kept) if runs else layer.spec.numel
        if layer.outputs is not None:  # what is left of it has no zeros
            return
        zeros += (computed - kept) * (inputs[0].numel() // spec.channels // spec.groups if spec.transposed else output.numel() // spec.rows)

    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, CompressedLayer)]
    try:
        with inference(model):
            forward(model, rows(sample, slice(0, 1)))
    finally:
        for hook in hooks:
            hook.remove()
    macs = dense_macs(model, sample)
    return Cost(sum(p.numel() for p in model.parameters()), macs, macs - zeros)
