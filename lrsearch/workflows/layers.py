"""What of a model can be compressed, as a table."""

import pandas as pd
from torch import nn

from lrsearch.compress.faithful import plain_layers
from lrsearch.compress.inventory import Inventory, inventory
from lrsearch.compress.prepare import prepare
from lrsearch.spec.space import Space
from lrsearch.task.forward import Inputs


def layers(model: nn.Module, inputs: Inputs, space: Space | None = None) -> pd.DataFrame:
    """Every module of ``model`` that owns weight matrices; those that stay dense with the reason.

    Args:
        model: any module; it is not changed.
        inputs: a batch that it accepts: a tensor, a tuple of arguments, or a dict of keyword arguments.
        space: whose fused layers are split, and whose choices are counted; by default the space that a search has.

    Returns:
        A row per layer, indexed by its name: ``kind``, ``weight`` (its shape), ``share`` (of the model's values), ``positions``
        (per example), ``choices``, ``reason`` (why it stays dense, empty if it can be compressed).

    Raises:
        ModelError: the model does not accept the inputs, or nothing in it can be compressed.
    """
    space = space or Space()
    ready = prepare(model, space.split)
    return table(plain_layers(ready, inventory(ready, inputs), inputs), space)


def table(found: Inventory, space: Space) -> pd.DataFrame:
    """The rows of :func:`layers`, largest share first."""
    menus = space.menus(found.layers, found.refused)
    rows: list[tuple[object, ...]] = [
        (layer.name, layer.kind, layer.weight_shape, found.shares[layer.name], layer.positions, len(menus[layer.name]), "")
        for layer in found.layers
    ]
    rows += [(name, "", (), found.shares[name], 0, 0, reason) for name, reason in found.refused.items()]
    frame = pd.DataFrame(rows, columns=["layer", "kind", "weight", "share", "positions", "choices", "reason"]).set_index("layer")
    return frame.sort_values("share", ascending=False, kind="stable")
