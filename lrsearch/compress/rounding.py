"""Rounding of weights to the type their values are stored in.

Rounding what is rounded changes nothing, so that a file holds exactly the weights that were scored.
"""

import torch
from torch import Tensor

from lrsearch.errors import ScoreError
from lrsearch.spec.storage import ValueType

LARGEST = 127  # of int8, symmetric
_HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def stored_type(own: torch.dtype, values: ValueType) -> torch.dtype:
    """The type in which a weight of type ``own`` is stored; never a wider one."""
    if values == "int8":
        return torch.int8
    return own if values == "float32" or own.itemsize <= 2 else _HALVES[values]


def rounded(weight: Tensor, values: ValueType, place: str) -> Tensor:
    """``weight`` (rows, ...) in its own type, with the values it has once stored.

    Raises:
        ScoreError: a value is too large for float16.
    """
    stored = stored_type(weight.dtype, values)
    if stored == weight.dtype:
        return weight
    if stored == torch.int8:
        return dequantized(*quantized(weight)).to(weight.dtype)
    result = weight.to(stored).to(weight.dtype)
    if bool(weight.isfinite().all()) and not bool(result.isfinite().all()):
        raise ScoreError(
            f"every weight must fit into {values}", value=float(weight.abs().max()), place=place,
            remedy="Set weights.values to bfloat16 or float32.",
        )
    return result


def quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Integers of the weight's shape (rows, ...) in int8 and scales ``(rows,)`` in bfloat16, whose product is near it.

    Symmetric: the largest of a row becomes ±127. Its scale, rounded to bfloat16, is never so far off
    that this fails, and an integer of 7 bits times a bfloat16 is exact in float32: so the product,
    quantized again, gives the same integers and scales.
    """
    flat = weight.float().flatten(1)
    scale = (flat.abs().amax(1) / LARGEST).to(torch.bfloat16)
    tiny = torch.finfo(torch.bfloat16).tiny
    scale = torch.where(scale < tiny, 0, scale)
    steps = (flat / scale.float().clamp_min(tiny)[:, None]).round().clamp(-LARGEST, LARGEST)
    return steps.to(torch.int8).view(weight.shape), scale


def dequantized(integers: Tensor, scale: Tensor) -> Tensor:
    """Inverse of :func:`quantized`, in float32."""
    return integers.float() * scale.float().view(-1, *[1] * (integers.dim() - 1))
