"""Outputs that nobody reads: those behind the columns that the one layer which reads them drops.

They need not be computed, nor stored: what a layer becomes has fewer rows then, of a low-rank part its last factor. So two
layers' choices together cost less than each alone, and what is less depends on both.
"""

from collections.abc import Mapping
from math import prod

from lrsearch.spec.formats import FORMATS
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.pattern import pattern
from lrsearch.spec.plan import LayerPlan, Plan


def drops_columns(plan: LayerPlan) -> bool:
    """Whether a layer under ``plan`` reads some of its channels, or none, as nothing of it is left."""
    return plan.zero or (not plan.rank and pattern(plan.pattern).drops == "inputs" and plan.density < 1)


def may_leave_out(layer: LayerSpec, plan: LayerPlan) -> bool:
    """Whether rows of what ``layer`` becomes can be left out, each with as many values: of a dense weight, of one without some
    columns, and of a low-rank part whose last factor has a row for each output."""
    if layer.tied or not layer.plain or not (layer.groups == 1 or layer.depthwise):
        return False
    if plan.rank:
        return not plan.density and FORMATS[plan.format].chained(layer)
    return plan.untouched or (drops_columns(plan) and not plan.zero)


def row_values(layer: LayerSpec, plan: LayerPlan) -> int:
    """Values of each row that may be left out."""
    return (prod(FORMATS[plan.format].shapes(layer, plan.rank)[-1]) if plan.rank else plan.kept(layer)) // layer.rows


def channels_read(reader: LayerSpec, plan: LayerPlan) -> int:
    """How many of its input channels a layer under ``plan`` reads."""
    kind = pattern(plan.pattern)
    if plan.zero:
        return 0
    return plan.kept(reader) // kind.atom(reader) if drops_columns(plan) else reader.channels * reader.groups


def followers(layers: Mapping[str, LayerSpec], plan: Plan) -> dict[str, str]:
    """Layer name → name of the layer that reads only some of its outputs, of those whose others are left out under ``plan``."""
    return {
        name: layer.read_by for name, layer in layers.items()
        if layer.read_by in layers and drops_columns(plan[layer.read_by]) and may_leave_out(layer, plan[name])
    }
