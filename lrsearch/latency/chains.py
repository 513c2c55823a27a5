"""Layers whose dropped columns take with them what alone feeds them: timed together with it, as one.

Then a layer's latency is that of the whole chain, from what feeds it to itself, under each of its choices. What feeds it has
no choices of its own: what two of them save together is not the sum of what each saves.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lrsearch.compress.matricize import Conv
from lrsearch.compress.modules import CompressedLayer
from lrsearch.deploy.channel_flow import Feed, drops_columns, feeds, keep_outputs, topped
from lrsearch.deploy.plain_layers import narrowed
from lrsearch.latency.micro_models import Job, alone, neighbour, randomised, signature, with_bias
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.plan import LayerPlan
from lrsearch.task.forward import Inputs


def fed_layers(dense: nn.Module, menus: Mapping[str, Sequence[LayerPlan]], sample: Inputs) -> dict[str, Feed]:
    """Layer name → its feed, of those whose columns are a choice; those of most channels first, so that none also feeds another.

    Args:
        dense: deployed.
        menus: layer name → choices.
        sample: a batch that ``dense`` accepts.
    """
    asked = {name for name, menu in menus.items() if any(map(drops_columns, menu))}
    found = {name: feed for name, feed in (feeds(dense, sample) if asked else {}).items() if name in asked}
    taken: dict[str, Feed] = {}
    for name, feed in sorted(found.items(), key=lambda item: -dense.get_submodule(item[0]).get_parameter("weight").shape[1]):
        feeding = {f.producer for f in taken.values()}
        if name not in feeding and feed.producer not in taken and feed.producer not in feeding:
            taken[name] = feed
    return taken


def fed_signature(dense: nn.Module, name: str, feed: Feed) -> str:
    """Of the layer and of all that feeds it, the nearest first."""
    modules = [dense.get_submodule(each) for each in (name, *reversed(feed.between), feed.producer)]
    return ", fed by ".join(
        signature(m, shape) if isinstance(m, nn.Linear | Conv) else type(m).__name__
        for m, shape in zip(modules, reversed(feed.shapes), strict=True)
        if not isinstance(m, nn.Identity)
    )


def chain_under(chain: Iterable[nn.Module], layer: LayerSpec, choice: LayerPlan) -> list[nn.Module]:
    """A copy of ``chain``, from what feeds the layer to itself, with the layer under ``choice``, random, and what that leaves of it."""
    *feeding, base = (copy.deepcopy(module) for module in chain)
    assert isinstance(base, nn.Linear | Conv)
    if not drops_columns(choice):
        return [*feeding, alone(base, layer, choice)]
    small = randomised(CompressedLayer(base, layer, choice))
    assert small.index is not None
    index = topped(small.index, layer.weight_shape[1])
    for module in feeding:
        if isinstance(module, nn.Linear | Conv):
            keep_outputs(module, index)
    return [*feeding, narrowed(small, index)]


@dataclass(frozen=True)
class FedJob(Job):
    """A layer under ``choice``, with the ``chain`` that feeds it, itself at its end."""

    chain: tuple[nn.Module, ...]
    shape: tuple[int, ...]

    def module(self) -> tuple[nn.Module, Tensor]:
        """The chain, and an input for it; see :meth:`Job.module`."""
        first = self.chain[0]
        modules = chain_under([*self.chain[:-1], with_bias(self.base)], self.layer, self.choice)
        if isinstance(first, Conv) and isinstance(self.base, Conv):
            modules = [neighbour(first, first.in_channels), *modules, neighbour(self.base, self.base.out_channels)]
        x = torch.randn(self.shape, dtype=self.base.get_parameter("weight").dtype)
        return nn.Sequential(*modules).requires_grad_(False), x
