"""Layers whose dropped columns take with them outputs of what alone feeds them: timed together with it, as one.

What a layer saves under each choice of columns is then what the whole chain saves, from what feeds it to itself, where the first is
dense. Where that is low rank, it has less to save: its part of what is saved is taken to be that of its multiply-accumulates.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lrsearch.compress.matricize import Conv
from lrsearch.compress.modules import CompressedLayer
from lrsearch.deploy.channel_flow import Feed, keep_outputs, topped
from lrsearch.deploy.plain_layers import narrowed
from lrsearch.latency.micro_models import Job, neighbour, randomised, signature, with_bias
from lrsearch.latency.table import fed_key
from lrsearch.spec.cost import layer_cost
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.plan import LayerPlan
from lrsearch.spec.unread import drops_columns, may_leave_out, row_values


def fed_signature(dense: nn.Module, name: str, feed: Feed) -> str:
    """Of the layer and of all that feeds it, the nearest first."""
    modules = [dense.get_submodule(each) for each in (name, *reversed(feed.between), feed.producer)]
    return ", fed by ".join(
        signature(m, shape) if isinstance(m, nn.Linear | Conv) else type(m).__name__
        for m, shape in zip(modules, reversed(feed.shapes), strict=True)
        if not isinstance(m, nn.Identity)
    )


@dataclass(frozen=True)
class FedJob(Job):
    """A layer that drops columns, or is dense, with the ``chain`` that feeds it, itself at its end; ``shape`` is of the input."""

    chain: tuple[nn.Module, ...]
    shape: tuple[int, ...]

    @property
    def key(self) -> str:
        return fed_key(self.choice) if drops_columns(self.choice) else str(self.choice)

    def module(self) -> tuple[nn.Module, Tensor]:
        """The chain, and an input for it; see :meth:`Job.module`."""
        first, dtype = self.chain[0], self.base.get_parameter("weight").dtype
        modules, x = chain_under([*self.chain[:-1], with_bias(self.base)], self.layer, self.choice), torch.randn(self.shape, dtype=dtype)
        if isinstance(first, Conv) and isinstance(self.base, Conv):
            if self.choice.zero:  # what is left is what is around: twice the neighbour behind
                with torch.no_grad():
                    x = nn.Sequential(*self.chain)(x)
                modules = [neighbour(self.base, self.base.out_channels)]
            else:
                modules = [neighbour(first, first.in_channels), *modules]
            modules = [*modules, neighbour(self.base, self.base.out_channels)]
        return nn.Sequential(*modules).requires_grad_(False), x


def chain_under(chain: Iterable[nn.Module], layer: LayerSpec, choice: LayerPlan) -> list[nn.Module]:
    """A copy of ``chain``, from what feeds the layer to itself, with the layer under ``choice``, random, and what that leaves of it."""
    *feeding, base = (copy.deepcopy(module) for module in chain)
    assert isinstance(base, nn.Linear | Conv)
    if choice.zero:
        return [nn.Identity()]
    if not drops_columns(choice):
        return [*feeding, base.requires_grad_(False)]
    small = randomised(CompressedLayer(base, layer, choice))
    assert small.index is not None
    index = topped(small.index, layer.weight_shape[1])
    for module in feeding:
        if isinstance(module, nn.Linear | Conv):
            keep_outputs(module, index)
    return [*feeding, narrowed(small, index)]


def fed_jobs(
    dense: nn.Module, layers: Mapping[str, LayerSpec], menus: Mapping[str, Sequence[LayerPlan]], fed: Mapping[str, Feed],
) -> Iterator[FedJob]:
    """What is to be timed of ``fed`` layers of a deployed model with what feeds them, each distinct one once."""
    seen = set[tuple[str, str]]()
    for name, feed in fed.items():
        chain = tuple(dense.get_submodule(each) for each in (feed.producer, *feed.between, name))
        for choice in (LayerPlan(), *filter(drops_columns, menus[name])):
            job = FedJob(fed_signature(dense, name, feed), layers[name], chain[-1], choice, chain, feed.shapes[0])
            if (job.signature, job.key) not in seen:
                seen.add((job.signature, job.key))
                yield job


def producers_share(layers: Mapping[str, LayerSpec], name: str, feed: Feed) -> float:
    """Share of the multiply-accumulates of a dense chain in what feeds layer ``name``."""
    macs = {each: layer_cost(layers[each], LayerPlan()).macs for each in (*feed.layers, name) if each in layers}
    return macs.get(feed.producer, 0) / (sum(macs.values()) or 1)


def last_share(layer: LayerSpec, plan: LayerPlan) -> float:
    """Share of a layer's multiply-accumulates in what has a row for each output, and can leave out those that nobody reads."""
    if not may_leave_out(layer, plan):
        return 0.0
    return layer.rows * row_values(layer, plan) * layer.positions / (layer_cost(layer, plan).macs or 1)
