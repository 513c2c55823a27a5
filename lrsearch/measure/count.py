"""Model → exact static costs."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lrsearch.compress.inventory import inference
from lrsearch.spec.cost import Cost, CostModel, layer_cost
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.plan import LayerPlan


def stored(model: nn.Module) -> tuple[int, int]:
    """Parameters (values; shared ones once) and bytes of all tensors in the state dict."""
    params = sum(p.numel() for p in model.parameters())
    tensors = {(t.data_ptr(), t.shape, t.dtype): t for t in model.state_dict().values()}
    return params, sum(t.numel() * t.element_size() for t in tensors.values())


def dense_macs(model: nn.Module, sample: Tensor) -> int:
    """Multiply-accumulates of one example, as torch's own counter has them (it counts two FLOPs each).

    What a model computes once a batch, such as a table of positions, counts as for a batch of one.
    """
    values = {name: p.detach() for name, p in model.named_parameters()}  # the counter fails on those that require gradients
    # Of attention, the counter sees the two products only where they are not fused into one CPU kernel.
    with inference(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        torch.func.functional_call(model, values, (sample[:1],))
    return int(counter.get_total_flops()) // 2


def cost_model(model: nn.Module, layers: Sequence[LayerSpec], sample: Tensor) -> CostModel:
    """The exact cost of any plan of ``model``; what no plan changes is the fixed part."""
    itemsize = model.get_parameter(f"{layers[0].name}.weight").element_size()
    params, weight_bytes = stored(model)
    macs = dense_macs(model, sample)
    weights = sum((layer_cost(layer, LayerPlan(), itemsize) for layer in layers), Cost())
    return CostModel(Cost(params, macs, macs, weight_bytes) - weights, tuple(layers), itemsize)
