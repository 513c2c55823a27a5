"""Supports of S: which values a pattern keeps, and how their mask is stored."""

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.pattern import Pattern

_BITS = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)


def support(values: Tensor, kept: int) -> Tensor:
    """Bool mask of the ``kept`` largest magnitudes over the whole tensor; always exactly ``kept``."""
    size = values.abs().flatten()
    if not 0 < kept < len(size):
        return torch.full(values.shape, kept > 0, dtype=torch.bool, device=values.device)
    if not size.is_cpu:
        mask = torch.zeros_like(size, dtype=torch.bool).index_fill_(0, size.topk(kept, sorted=False).indices, True)
    else:
        array = size.detach().to(torch.promote_types(size.dtype, torch.float32)).numpy()  # which knows no bfloat16
        threshold = _least_kept(array, kept)
        chosen = array >= threshold
        if over := np.count_nonzero(chosen) - kept:
            chosen[np.flatnonzero(array == threshold)[-over:]] = False
        mask = torch.from_numpy(chosen)
    return mask.view_as(values)


def _least_kept(size: NDArray[np.float32], kept: int) -> np.float32:
    """The smallest of the ``kept`` largest of sizes >= 0, by their bits, whose order is the same: a twentieth of the time of topk."""
    bits = size.view(np.int32) if size.dtype == np.float32 else size
    found: np.float32 = np.partition(bits, len(bits) - kept)[len(bits) - kept].view(size.dtype)
    return found


def largest(values: Tensor, kept: int) -> Tensor:
    """``values`` where :func:`support` is, else zero; of float32 on a CPU without making its mask, unless there are ties."""
    if values.is_cpu and values.dtype == torch.float32 and 0 < kept < values.numel():
        size = values.detach().abs().flatten().numpy()
        threshold = _least_kept(size, kept)
        if np.count_nonzero(size >= threshold) == kept:
            return F.hardshrink(values, float(np.nextafter(threshold, np.float32(0))))
    return values * support(values, kept).to(values.dtype)


def select(values: Tensor, layer: LayerSpec, pattern: Pattern, kept: int) -> Tensor:
    """Bool mask ``(groups, rows, columns)`` of the pattern that keeps most of Σ ``values``².

    Args:
        values: ``(groups, rows, columns)``, in the layer's scaled coordinates.
        kept: number of values to keep; a whole number of atoms.
    """
    if pattern.free or not 0 < kept < values.numel():
        return support(values, kept)
    layout, allowed = pattern.layout(layer), allowed_atoms(pattern, layer)
    if pattern.quota and layout.quota_axis is not None:
        size = _energy(values, layer, pattern)
        best = size.topk(pattern.quota[0], dim=layout.quota_axis).indices
        return expand(torch.zeros_like(size, dtype=torch.bool).scatter_(layout.quota_axis, best, True), layer, pattern)
    size = _energy(values, layer, pattern).flatten()
    if allowed is None:
        return expand(support(size, kept // pattern.atom(layer)), layer, pattern)
    chosen = support(size[allowed.to(size.device)], kept // pattern.atom(layer))
    return expand(torch.zeros_like(size, dtype=torch.bool).index_put_((allowed.to(size.device),), chosen), layer, pattern)


def _energy(values: Tensor, layer: LayerSpec, pattern: Pattern) -> Tensor:
    """Root of the summed squares of each atom, in the layout's outer shape."""
    layout = pattern.layout(layer)
    split = _ordered(values, layer, pattern).view(layout.view)
    return split.square().sum(layout.inner, keepdim=True).sqrt() if layout.inner else split.abs()


def expand(atoms: Tensor, layer: LayerSpec, pattern: Pattern) -> Tensor:
    """Mask of the atoms, in any shape → mask ``(groups, rows, columns)``."""
    layout, order = pattern.layout(layer), _order(pattern, layer)
    whole = atoms.view(layout.outer).expand(layout.view)
    if order is not None:
        whole = torch.empty_like(whole.flatten()).index_put_((order.to(atoms.device),), whole.flatten())
    return whole.reshape(layer.matrix_shape)


def contract(mask: Tensor, layer: LayerSpec, pattern: Pattern) -> Tensor:
    """Inverse of :func:`expand`: the mask of the atoms, flat."""
    layout = pattern.layout(layer)
    split = _ordered(mask, layer, pattern).view(layout.view)
    return split[tuple(slice(0, 1) if axis in layout.inner else slice(None) for axis in range(split.dim()))].flatten()


def _ordered(values: Tensor, layer: LayerSpec, pattern: Pattern) -> Tensor:
    """``values``, flat, in the pattern's order."""
    order = _order(pattern, layer)
    return values.reshape(-1) if order is None else values.reshape(-1)[order.to(values.device)]


@lru_cache(maxsize=256)
def _order(pattern: Pattern, layer: LayerSpec) -> Tensor | None:
    order = pattern.order(layer)
    return None if order is None else torch.from_numpy(np.asarray(order, dtype=np.int64))


@lru_cache(maxsize=256)
def allowed_atoms(pattern: Pattern, layer: LayerSpec) -> Tensor | None:
    """Indices of the atoms that may be kept, ascending; None: all."""
    allowed = pattern.allowed(layer)
    return None if allowed is None else torch.from_numpy(np.flatnonzero(allowed))


def pack_bits(mask: Tensor) -> Tensor:
    """Bool mask of any shape → ``ceil(numel / 8)`` bytes, least significant bit first."""
    bits = F.pad(mask.flatten().to(torch.uint8), (0, -mask.numel() % 8)).view(-1, 8)
    return (bits * _BITS.to(mask.device)).sum(1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, numel: int) -> Tensor:
    """Inverse of :func:`pack_bits`: a flat bool mask of ``numel`` positions."""
    return ((packed[:, None] & _BITS.to(packed.device)) != 0).flatten()[:numel]
