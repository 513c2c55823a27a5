"""One layer's weight as the bytes of its tensor in the file, and back, to the bit.

The factors of L in order; then S: its positions in the code that
:func:`lrsearch.spec.storage.sparse_storage` names, and its values, row by row. For ``int8`` there are
scales before each factor and before the values of S.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lrsearch.compress import positions
from lrsearch.compress.fit import Decomposition
from lrsearch.compress.rounding import dequantized, quantized, rounded, stored_type
from lrsearch.compress.sparsify import select
from lrsearch.spec.formats import FORMATS
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.pattern import pattern
from lrsearch.spec.plan import LayerPlan
from lrsearch.spec.storage import ValueType, layer_bytes, row_bytes, sparse_storage


def as_bytes(tensors: Sequence[Tensor]) -> Tensor:
    """The values of all ``tensors`` in order, uint8 ``(bytes,)``."""
    return torch.cat([t.detach().contiguous().flatten().view(torch.uint8) for t in tensors] or [torch.zeros(0, dtype=torch.uint8)])


class Reader:
    """Takes tensors off uint8 ``(bytes,)``, one after the other."""

    def __init__(self, packed: Tensor) -> None:
        self._packed, self._at = packed, 0

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """The next tensor."""
        size = torch.Size(shape).numel() * dtype.itemsize
        part = self._packed[self._at : self._at + size].clone()  # at an address that suits any type
        self._at += size
        return part.view(dtype).view(torch.Size(shape))


def pack(fit: Decomposition, values: ValueType, outputs: Tensor | None = None) -> Tensor:
    """The bytes of a layer, as many as :func:`lrsearch.spec.storage.layer_bytes` says.

    Args:
        outputs: those that are read, if others are not: rows of these alone are stored, each of
            :func:`lrsearch.spec.storage.row_bytes`.

    Raises:
        ScoreError: a value is too large for the type.
    """
    layer, plan = fit.layer, fit.plan
    sparse, matrix, mask, factors = sparse_storage(layer, plan, values), fit.sparse.flatten(0, 1), None, list(fit.factors)
    if outputs is not None:
        matrix = matrix[outputs]
        factors[-1:] = [factor[outputs] for factor in factors[-1:]]
    parts = [part for factor in factors for part in _stored(factor, None, values, layer.name)]
    if sparse.code != "dense":
        mask = fit.mask.flatten(0, 1) if outputs is None else fit.mask.flatten(0, 1)[outputs]
        parts.append(positions.encode(fit.mask, layer, plan, sparse.code))
    return as_bytes(parts + (_stored(matrix, mask, values, layer.name) if sparse.values else []))


def _stored(weight: Tensor, mask: Tensor | None, values: ValueType, place: str) -> list[Tensor]:
    """Scales, if any, and the values of ``weight`` (rows, ...) that are under ``mask``."""
    scales, stored = [], weight
    if values == "int8":
        stored, scale = quantized(weight)
        scales = [scale]
    else:
        stored = rounded(weight, values, place).to(stored_type(weight.dtype, values))
    return [*scales, stored if mask is None else stored[mask]]


def unpack(
    packed: Tensor, layer: LayerSpec, plan: LayerPlan, values: ValueType, own: torch.dtype, outputs: Tensor | None = None,
) -> Decomposition:
    """Inverse of :func:`pack`, for a weight of type ``own``; rows that are not stored are zero.

    Raises:
        ValueError: these are not the bytes of this layer under this plan.
    """
    left_out = 0 if outputs is None else layer.rows - len(outputs)
    if len(packed) != (size := layer_bytes(layer, plan, values) - (left_out * row_bytes(layer, plan, values) if left_out else 0)):
        raise ValueError(f"{layer.name} has {len(packed)} bytes, its plan {size}")
    rows = torch.arange(layer.rows) if outputs is None else outputs
    reader, sparse = Reader(packed), sparse_storage(layer, plan, values)
    shapes = FORMATS[plan.format].shapes(layer, plan.rank) if plan.rank else ()
    factors = tuple(_read(reader, shape, None, values, own) for shape in shapes[:-1])
    if shapes:
        last = shapes[-1] if outputs is None else (len(rows), *shapes[-1][1:])
        read = _read(reader, last, None, values, own)
        factors = *factors, read if outputs is None else read.new_zeros(shapes[-1]).index_copy(0, rows, read)
    kept = plan.kept(layer)
    if not kept:
        return Decomposition(layer, plan, factors, torch.zeros(layer.matrix_shape, dtype=own), torch.zeros(layer.matrix_shape).bool())
    if sparse.code != "dense":
        bits = reader.take((-(-sparse.position_bits // 8),), torch.uint8)
        mask = positions.decode(bits, layer, plan, sparse.code)
        matrix = _whole(_read(reader, (len(rows), layer.columns), mask.flatten(0, 1)[rows], values, own), layer, rows)
    else:
        matrix = _whole(_read(reader, (len(rows), layer.columns), None, values, own), layer, rows)
        mask = select((matrix != 0).float(), layer, pattern(plan.pattern), kept)
    return Decomposition(layer, plan, factors, matrix, mask)


def _whole(read: Tensor, layer: LayerSpec, rows: Tensor) -> Tensor:
    """``read`` (rows, columns) as the layer's matrices, zero elsewhere."""
    return read.new_zeros(layer.rows, layer.columns).index_copy(0, rows, read).view(layer.matrix_shape)


def _read(reader: Reader, shape: Sequence[int], mask: Tensor | None, values: ValueType, own: torch.dtype) -> Tensor:
    """Inverse of :func:`_stored`: a weight of ``shape``, zero outside ``mask``."""
    stored = stored_type(own, values)
    scale = reader.take(shape[:1], torch.bfloat16) if values == "int8" else None
    if mask is None:
        weight = reader.take(shape, stored)
    else:
        weight = torch.zeros(mask.shape, dtype=stored)
        weight[mask] = reader.take((int(mask.sum()),), stored)
    return (weight if scale is None else dequantized(weight, scale)).to(own)
