"""Layers whose dropped columns take with them outputs of what alone feeds them.

Such a layer is timed on the channels that it reads, and what feeds it, dense, with as many outputs. What a low-rank layer saves
that feeds one is estimated: its last stage, by its share of the multiply-accumulates, as the dense layer.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lrsearch.compress.matricize import Conv
from lrsearch.compress.modules import CompressedLayer
from lrsearch.deploy.channel_flow import Feed, keep_outputs, lanes, topped
from lrsearch.deploy.plain_layers import narrowed
from lrsearch.latency.micro_models import Job, neighbour, randomised, shape_of, with_bias
from lrsearch.latency.table import fed_key, outputs_key
from lrsearch.spec.cost import layer_cost
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.plan import LayerPlan
from lrsearch.spec.unread import channels_read, drops_columns, may_leave_out, row_values


@dataclass(frozen=True)
class FedJob(Job):
    """A layer that drops columns, on the channels that it reads alone."""

    @property
    def key(self) -> str:
        return fed_key(self.choice)

    def module(self) -> tuple[nn.Module, Tensor]:
        if self.choice.zero:
            return _neighbours(self.base, self.layer.rows, _output_shape(self.base, shape_of(self.signature)))
        small = randomised(CompressedLayer(with_bias(self.base), self.layer, self.choice))  # type: ignore[arg-type]
        assert small.index is not None
        index = topped(small.index, self.layer.weight_shape[1])
        return _between_neighbours(self.base, narrowed(small, index), shape_of(self.signature), len(index), self.layer.rows)


@dataclass(frozen=True)
class FeedingJob(Job):
    """A dense layer with ``outputs`` alone."""

    outputs: int = 0

    @property
    def key(self) -> str:
        return outputs_key(self.outputs)

    def module(self) -> tuple[nn.Module, Tensor]:
        layer, shape = with_bias(self.base), shape_of(self.signature)
        assert isinstance(layer, nn.Linear | Conv)
        if not self.outputs:
            return _neighbours(self.base, layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels, shape)
        keep_outputs(layer, torch.arange(self.outputs))
        into = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
        return _between_neighbours(self.base, layer, shape, into, self.outputs)


def _between_neighbours(base: nn.Module, module: nn.Module, shape: tuple[int, ...], into: int, out: int) -> tuple[nn.Module, Tensor]:
    """``module``, between two others where it is a convolution (see :meth:`Job.module`), and an input of ``into`` channels."""
    dtype = base.get_parameter("weight").dtype
    if not isinstance(base, Conv):
        return module.requires_grad_(False), torch.randn(*shape[:-1], into, dtype=dtype)
    whole = nn.Sequential(neighbour(base, into), module, neighbour(base, out))
    return whole.requires_grad_(False), torch.randn(shape[0], into, *shape[2:], dtype=dtype)


def _neighbours(base: nn.Module, channels: int, shape: tuple[int, ...]) -> tuple[nn.Module, Tensor]:
    """What is left of :func:`_between_neighbours` without a module between them."""
    x = torch.randn(shape, dtype=base.get_parameter("weight").dtype)
    whole = nn.Sequential(neighbour(base, channels), neighbour(base, channels)) if isinstance(base, Conv) else nn.Sequential(nn.Identity())
    return whole.requires_grad_(False), x


def _output_shape(base: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of a layer's output."""
    with torch.no_grad():
        return tuple(base(torch.zeros(shape, dtype=base.get_parameter("weight").dtype)).shape)


def fed_jobs(
    model: nn.Module, layers: Mapping[str, LayerSpec], menus: Mapping[str, Sequence[LayerPlan]], called: Mapping[str, tuple[str, ...]],
    fed: Mapping[str, Feed],
) -> Iterator[Job]:
    """What is to be timed of ``fed`` layers that drop columns and of what feeds them, each distinct one once."""
    seen = set[tuple[str, str]]()
    for name, feed in fed.items():
        columns = [choice for choice in menus[name] if drops_columns(choice)]
        found: list[Job] = [FedJob(called[name][0], layers[name], model.get_submodule(name), choice) for choice in columns]
        for each in feed.layers:
            base = model.get_submodule(each)
            counts = {lanes(channels_read(layers[name], choice), len(base.get_parameter("weight"))) for choice in columns}
            found += [FeedingJob(called[each][0], layers[name], base, LayerPlan(), count) for count in sorted(counts)]
        for job in found:
            if (job.signature, job.key) not in seen:
                seen.add((job.signature, job.key))
                yield job


def last_share(layer: LayerSpec, plan: LayerPlan) -> float:
    """Share of a layer's multiply-accumulates in what has a row for each output, and can leave out those that nobody reads."""
    if not may_leave_out(layer, plan):
        return 0.0
    return layer.rows * row_values(layer, plan) * layer.positions / (layer_cost(layer, plan).macs or 1)


