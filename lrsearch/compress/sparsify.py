"""Supports of S: which values a pattern keeps, and how their mask is stored."""

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
    if size.is_cuda:
        mask = torch.zeros_like(size, dtype=torch.bool).index_fill_(0, size.topk(kept, sorted=False).indices, True)
    else:
        array = size.detach().numpy()
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
    if pattern.kind == "unstructured" or not 0 < kept < values.numel():
        return support(values, kept)
    if pattern.kind == "n:m":
        size = values.abs().view(*values.shape[:2], layer.channels // pattern.width, pattern.width, -1)
        best = size.topk(pattern.height, dim=3).indices
        return torch.zeros_like(size, dtype=torch.bool).scatter_(3, best, True).view_as(values)
    return expand(support(_energy(values, layer, pattern), kept // pattern.atom(layer)), layer, pattern)


def _energy(values: Tensor, layer: LayerSpec, pattern: Pattern) -> Tensor:
    """Root of the summed squares of each atom."""
    split = values.square().view(*values.shape[:2], layer.channels, -1)
    if pattern.kind == "column":
        split = split.sum((0, 1, 3))
    elif pattern.kind == "row":
        split = split.sum((0, 2, 3))
    else:
        g, rows, channels, kernel = split.shape
        h, w = pattern.height, pattern.width
        split = split.view(g, rows // h, h, channels // w, w, kernel).sum((2, 4))
    return split.sqrt()


def expand(atoms: Tensor, layer: LayerSpec, pattern: Pattern) -> Tensor:
    """Mask of the atoms, in any shape → mask ``(groups, rows, columns)``."""
    g, rows, columns = layer.matrix_shape
    kernel = columns // layer.channels
    if pattern.kind == "column":
        whole = atoms.view(1, 1, -1, 1).expand(g, rows, -1, kernel)
    elif pattern.kind == "row":
        whole = atoms.view(1, -1, 1, 1).expand(g, -1, layer.channels, kernel)
    elif pattern.kind == "block":
        h, w = pattern.height, pattern.width
        whole = atoms.view(g, rows // h, 1, layer.channels // w, 1, kernel).expand(-1, -1, h, -1, w, -1)
    else:
        whole = atoms
    return whole.reshape(layer.matrix_shape)


def contract(mask: Tensor, layer: LayerSpec, pattern: Pattern) -> Tensor:
    """Inverse of :func:`expand`: the mask of the atoms, flat."""
    split = mask.reshape(*layer.matrix_shape[:2], layer.channels, -1)
    if pattern.kind == "column":
        return split[0, 0, :, 0]
    if pattern.kind == "row":
        return split[0, :, 0, 0]
    if pattern.kind == "block":
        return split[:, :: pattern.height, :: pattern.width].flatten()
    return mask.flatten()


def pack_bits(mask: Tensor) -> Tensor:
    """Bool mask of any shape → ``ceil(numel / 8)`` bytes, least significant bit first."""
    bits = F.pad(mask.flatten().to(torch.uint8), (0, -mask.numel() % 8)).view(-1, 8)
    return (bits * _BITS.to(mask.device)).sum(1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, numel: int) -> Tensor:
    """Inverse of :func:`pack_bits`: a flat bool mask of ``numel`` positions."""
    return ((packed[:, None] & _BITS.to(packed.device)) != 0).flatten()[:numel]
