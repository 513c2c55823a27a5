"""ONNX files as small as their values: weights are written as they are stored, and operators on constants make them whole again.

Runtimes fold constants when they load a model, so that it runs as if its weights had been written out: in ONNX Runtime nothing is slower
(a DequantizeLinear would be, as it is left for integer operators to take in). Written smallest of all, for each weight by itself:
float32, float16, bfloat16 or int8 with a scale for each row; all values, or a bitmask and those that are not 0; L and S, or their sum.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrsearch.compress.formats.base import low_rank
from lrsearch.compress.formats.chain import Chain, kernel
from lrsearch.compress.modules import CompressedLayer

FEWEST = 64  # values; fewer are not worth the operators
LARGEST, OFF_GRID = 127, 1e-4  # of int8; steps that rounding in float32 may leave a value beside an integer
_BITS = np.array([1 << i for i in range(8)], np.uint8)


@dataclass
class Part:
    """Operators and tensors that make up a constant."""

    prefix: str
    nodes: list[Any] = field(default_factory=list)
    tensors: list[Any] = field(default_factory=list)

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        from onnx import helper

        output = f"{self.prefix}.{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def tensor(self, value: np.ndarray) -> str:
        from onnx import numpy_helper

        name = f"{self.prefix}:{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def integers(self, *values: int) -> str:
        return self.tensor(np.array(values, np.int64))

    def cast(self, name: str, kind: str) -> str:
        from onnx import TensorProto

        return self.node("Cast", name, to=getattr(TensorProto, kind))

    def bfloats(self, value: np.ndarray) -> str:
        """``value``, of float32 that fit into bfloat16."""
        from onnx import TensorProto, helper

        name = f"{self.prefix}:{len(self.tensors)}"
        halves = (value.view(np.uint32) >> 16).astype(np.uint16)
        self.tensors.append(helper.make_tensor(name, TensorProto.BFLOAT16, value.shape, halves.tobytes(), raw=True))
        return name

    @property
    def bytes(self) -> int:
        """In the file."""
        return sum(each.ByteSize() for each in (*self.nodes, *self.tensors))


def compact(model: bytes, halves: bool = False, sums: Sequence[CompressedLayer] = ()) -> bytes:
    """A serialised ONNX model with the same weights in fewer bytes, without what the exporter notes about their making.

    Args:
        model: with weights in float32, or in int8 for integer operators.
        halves: round weights to float16, but those that it cannot hold.
        sums: layers, folded, of which some run as one dense weight, the sum of L and S.
    """
    import onnx
    from onnx import numpy_helper

    whole = onnx.load_from_string(model)
    del whole.graph.value_info[:]
    for node in whole.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    wholes, made, kept = {_key(w): (layer, turned) for layer in sums for w, turned in _looks(layer)}, list[Any](), list[Any]()
    for number, tensor in enumerate(whole.graph.initializer):
        tensor.doc_string = ""
        value = numpy_helper.to_array(tensor)
        best = None
        if value.size >= FEWEST and tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.INT8):
            ways = list(_ways(f"w{number}", value, halves))
            if found := wholes.get(_key(value)):
                ways += [_summed(f"w{number}", *found, halves)]
            best = min(ways, key=lambda way: way.bytes, default=None)
        if best is None or best.bytes >= tensor.ByteSize():
            kept.append(tensor)
            continue
        best.nodes[-1].output[0] = tensor.name
        made += best.nodes
        kept += best.tensors
    nodes = [*made, *whole.graph.node]
    del whole.graph.initializer[:], whole.graph.node[:]
    whole.graph.initializer.extend(kept)
    whole.graph.node.extend(nodes)
    data: bytes = whole.SerializeToString()
    return data


def _looks(layer: CompressedLayer) -> Iterator[tuple[np.ndarray, bool]]:
    """The weight that ``layer`` runs with as one dense layer, and transposed; nothing where that is no sum to be written."""
    summed = layer.factors and layer.spec.plain and isinstance(low_rank(layer.plan.format), Chain)
    if summed and layer.whole_weight().dtype == torch.float32:
        weight = layer.whole_weight().detach().cpu().numpy()
        yield weight, False
        if weight.ndim == 2:
            yield weight.T, True


def _key(value: np.ndarray) -> tuple[Any, ...]:
    return value.shape, value.dtype.str, hash(value.tobytes())


def _ways(prefix: str, value: np.ndarray, halves: bool) -> Iterator[Part]:
    """The ways to write ``value``, but as it is: the values in each type that holds them, all of them or without zeros."""
    for kind, masked in _choices(value, halves):
        part = Part(prefix)
        _write(part, value, kind, masked)
        if part.nodes:
            yield part


def _choices(value: np.ndarray, halves: bool) -> Iterator[tuple[str, bool]]:
    """Types, each with all values and, where an eighth of a byte for each may cost less than the zeros, without these."""
    zeros = value.size - np.count_nonzero(value)
    for kind in _types(value, halves):
        yield kind, False
        if 8 * zeros > value.size:
            yield kind, True


def _types(value: np.ndarray, halves: bool) -> list[str]:
    if value.dtype == np.int8:
        return ["INT8"]
    with np.errstate(over="ignore"):
        half = value.astype(np.float16)
    types = ["FLOAT"]
    if bool(np.isfinite(half).all()) and (halves or bool((half == value).all())):
        types.append("FLOAT16")
    if not (value.view(np.uint32) & 0xFFFF).any():
        types.append("BFLOAT16")
    return [*types, *(f"grid {axis}" for axis in {0, value.ndim - 1} if value.ndim > 1 and _grid(value, axis) is not None)]


def _grid(value: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Integers in int8 and a scale for each index of ``axis``, kept as 1 elsewhere, whose product is ``value``; None if there are none.

    A row that is stored in int8 has an integer of 127, or of 126 where its scale was rounded up.
    """
    others = tuple(i for i in range(value.ndim) if i != axis)
    most = np.abs(value).max(others, keepdims=True)
    integers, scale = np.zeros_like(value), np.ones_like(most)
    found = most == 0
    for largest in (LARGEST, LARGEST - 1):
        steps = value / np.where(most == 0, 1, most / largest)
        fits = (np.abs(steps - steps.round()) < OFF_GRID).all(others, keepdims=True) & ~found
        integers, scale, found = np.where(fits, steps.round(), integers), np.where(fits, most / largest, scale), found | fits
    return (integers.astype(np.int8), scale) if found.all() else None


def _write(part: Part, value: np.ndarray, kind: str, masked: bool) -> str:
    """Add what makes ``value`` in its own type; returns its name."""
    scale = None
    if kind.startswith("grid"):
        found = _grid(value, int(kind[5:]))
        assert found is not None
        value, scale = found
    stored = value.astype(np.float16) if kind == "FLOAT16" else value
    write = part.bfloats if kind == "BFLOAT16" else part.tensor
    if masked:
        flat = stored.ravel()
        values = write(np.concatenate([np.zeros(1, flat.dtype), flat[flat != 0]]))  # the first is that of all zeros
        name = part.node("Gather", values, _positions(part, flat != 0))
        name = part.node("Reshape", name, part.integers(*value.shape))
    else:
        name = write(stored)
    if kind not in ("FLOAT", "INT8"):
        name = part.cast(name, "FLOAT")
    return name if scale is None else part.node("Mul", name, part.tensor(scale))


def _positions(part: Part, there: np.ndarray) -> str:
    """For each of ``there``, padded to whole bytes, the number of those up to it, or 0 if it is not there."""
    bits = part.tensor(np.packbits(there, bitorder="little")[:, None])
    ones = part.cast(part.cast(part.node("BitwiseAnd", bits, part.tensor(_BITS)), "BOOL"), "INT32")
    ones = part.node("Reshape", ones, part.integers(-1))
    if len(there) % 8:
        ones = part.node("Slice", ones, part.integers(0), part.integers(len(there)))
    return part.node("Mul", part.node("CumSum", ones, part.tensor(np.array(0))), ones)


def _summed(prefix: str, layer: CompressedLayer, turned: bool, halves: bool) -> Part:
    """L composed, as :meth:`lrsearch.compress.formats.chain.Chain.compose` does, and S added."""
    part, groups = Part(prefix), layer.spec.groups

    def written(value: Tensor) -> str:
        array = value.detach().cpu().numpy()
        sizes = {}
        for kind, masked in _choices(array, halves):
            _write(tried := Part(prefix), array, kind, masked)
            sizes[kind, masked] = tried.bytes
        return _write(part, array, *min(sizes, key=sizes.__getitem__))

    def staged(factor: Tensor) -> str:
        return part.node("Reshape", written(factor), part.integers(groups, len(factor) // groups, factor.shape[1], *kernel(factor)))

    first, *others = layer.factors
    rows, name, (high, wide) = len(first) // groups, staged(first), kernel(first)
    for factor in others:
        if factor.shape[1] == 1 and len(factor) // groups == rows:  # depthwise
            name = part.node("Mul", name, staged(factor))
        else:
            name = part.node("Einsum", staged(factor), name, equation="gomab,gmicd->goiacbd")
        rows, (a, b) = len(factor) // groups, kernel(factor)
        high, wide = high * a, wide * b
        name = part.node("Reshape", name, part.integers(groups, rows, -1, high, wide))
    name = part.node("Reshape", name, part.integers(*layer.spec.weight_shape))
    if layer.values is not None:
        sparse = layer.sparse_weight()
        name = part.node("Add", name, written(sparse))
    if turned:
        part.node("Transpose", name, perm=[1, 0])
    return part
