"""Storage: what a model takes in the saved file, exact from shapes alone, before anything is fitted.

The positions of S are stored in the smallest code whose size follows from the number of atoms and
how many of them are kept (see :mod:`lrsearch.spec.pattern`). Lists of 16-bit indices or of 8-bit
deltas are not offered: the Elias-Fano code is smaller at every density, but for a byte at one or
two atoms.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from math import comb, prod
from typing import Literal

from lrsearch.spec.formats import FORMATS
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.pattern import Pattern, pattern
from lrsearch.spec.plan import LayerPlan
from lrsearch.spec.unread import row_values

ValueType = Literal["float32", "float16", "bfloat16", "int8"]
Code = Literal["dense", "bitmask", "elias-fano", "combination", "known"]
REST = ".rest"  # no module has this name
SCALE_BYTES = 2  # of the scale of a row of integers: bfloat16
_DIGITS = 12  # room for each number in the header: files of up to a terabyte
# Bytes of a tensor in a safetensors header, without its name: its type, and three numbers: its size, where it begins and where it ends.
_ENTRY = len('"":{"dtype":"U8","shape":[],"data_offsets":[,]},') + 3 * _DIGITS


def value_bytes(values: ValueType, itemsize: int) -> int:
    """Bytes of one stored value of a tensor whose own values take ``itemsize``; none is stored wider than it is.

    ``float32`` stands for every tensor's own type.
    """
    return {"float32": itemsize, "int8": 1}.get(values, min(2, itemsize))


def elias_fano_bits(n: int, k: int) -> tuple[int, int]:
    """Low bits of each index, and bits of the unary part, of ``k`` ascending indices below ``n`` (Fano 1971, Elias 1974)."""
    low = (n // k).bit_length() - 1
    return low, k + ((n - 1) >> low)


def combination_bits(kind: Pattern) -> int:
    """Bits of the number of one n:m group's combination; 0 if that does not fit 62 bits or the pattern has no groups."""
    count = comb(kind.quota[1], kind.quota[0]) if kind.quota else 0
    return (count - 1).bit_length() if 1 < count < 2**62 else 0


@dataclass(frozen=True)
class SparseStorage:
    """How S is stored.

    Attributes:
        code: of the positions; ``dense`` has none, the zeros are among the values; ``known`` has none, the pattern leaves no choice.
        values: number of values stored.
        position_bits: of all positions, before they are rounded up to bytes.
    """

    code: Code
    values: int
    position_bits: int

    def bytes(self, value: int) -> int:
        """Bytes of values that take ``value`` each, and of their positions."""
        return self.values * value + -(-self.position_bits // 8)


def sparse_storage(layer: LayerSpec, plan: LayerPlan, values: ValueType) -> SparseStorage:
    """The smallest way to store the S of a layer."""
    kind, kept = pattern(plan.pattern), plan.kept(layer)
    if not kept:
        return SparseStorage("dense", 0, 0)
    atoms, chosen = kind.choosable(layer), kept // kind.atom(layer)
    low, unary = elias_fano_bits(atoms, chosen)
    ways = [
        SparseStorage("dense", layer.numel, 0),
        SparseStorage("bitmask", kept, atoms),
        SparseStorage("elias-fano", kept, chosen * low + unary),
    ]
    if (bits := combination_bits(kind)) and kind.quota:
        ways.append(SparseStorage("combination", kept, atoms // kind.quota[1] * bits))
    if chosen == atoms < kind.atoms(layer):
        ways.append(SparseStorage("known", kept, 0))
    return min(ways, key=lambda way: way.bytes(value_bytes(values, layer.itemsize)))


def layer_bytes(layer: LayerSpec, plan: LayerPlan, values: ValueType) -> int:
    """Bytes of a layer's weight in the file: factors, S, and for ``int8`` a scale per row of each."""
    shapes = FORMATS[plan.format].shapes(layer, plan.rank) if plan.rank else ()
    value, sparse = value_bytes(values, layer.itemsize), sparse_storage(layer, plan, values)
    rows = sum(shape[0] for shape in shapes) + (layer.rows if sparse.values else 0)
    scales = SCALE_BYTES * rows if values == "int8" else 0
    return sum(prod(shape) for shape in shapes) * value + sparse.bytes(value) + scales


def row_bytes(layer: LayerSpec, plan: LayerPlan, values: ValueType) -> int:
    """Bytes that each output of a layer takes, of one whose rows may be left out (:func:`lrsearch.spec.unread.may_leave_out`)."""
    return row_values(layer, plan) * value_bytes(values, layer.itemsize) + (SCALE_BYTES if values == "int8" else 0)


def header_bytes(layers: Iterable[str]) -> int:
    """Bytes before the data of a file with a tensor for each of ``layers`` and one for the rest.

    Its numbers are given room for twelve digits each; the room that is left is filled with spaces.
    """
    names = sum(len(json.dumps(name)) - 2 + _ENTRY for name in (*layers, REST))
    return 8 + -(-(2 + names) // 8) * 8
