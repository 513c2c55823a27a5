"""What feeds a layer alone, channel by channel: the outputs behind a column that the layer drops need not be computed at all.

In an inverted residual the projection is fed by the expansion, through a depthwise convolution; in a transformer the second layer of
an MLP by the first. Where such a layer drops whole columns, the outputs that only they read, and their depthwise filters, go too.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lrsearch.compress.matricize import Conv
from lrsearch.compress.modules import CompressedLayer
from lrsearch.deploy.trace import Tracker
from lrsearch.spec.plan import LayerPlan
from lrsearch.task.forward import Inputs, forward, inference

LANES = 16  # channels that runtimes keep side by side; other numbers of them can take longer than all


@dataclass(frozen=True)
class Feed:
    """A layer and what alone feeds it.

    Attributes:
        producer: name of the layer whose outputs become the fed layer's inputs, each from the one of its channel, and go nowhere else.
        between: names of what is between them, in order: depthwise convolutions, and modules without weights that treat every
            channel by itself. Functions of each value, which may be there too, have none.
        shapes: of the inputs of the producer, of each between, and of the fed layer.
    """

    producer: str
    between: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]


def feeds(model: nn.Module, sample: Inputs) -> dict[str, Feed]:
    """Layer name → its feed, for the layers that have one; found by a forward pass.

    Args:
        model: dense or compressed; what is called more than once, or read otherwise than by one module or one function of each of
            its values, feeds nothing.
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
            found[names[layer]] = Feed(producer, tuple(between), tuple(modules.values()))
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
