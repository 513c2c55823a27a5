"""Codes for the positions of S: its mask → the bytes that :mod:`lrsearch.spec.storage` predicts, and back."""

from collections.abc import Callable
from math import comb

import torch
from torch import Tensor

from lrsearch.compress.sparsify import contract, expand, pack_bits, unpack_bits
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.pattern import Pattern, pattern
from lrsearch.spec.plan import LayerPlan
from lrsearch.spec.storage import Code, combination_bits, elias_fano_bits


def encode(mask: Tensor, layer: LayerSpec, plan: LayerPlan, code: Code) -> Tensor:
    """Bytes of ``mask`` (groups, rows, columns)."""
    atoms = contract(mask, layer, pattern(plan.pattern))
    if code == "bitmask":
        return pack_bits(atoms)
    if code == "elias-fano":
        return pack_bits(_elias_fano(atoms))
    return pack_bits(_combinations(_groups(atoms, layer, pattern(plan.pattern)), pattern(plan.pattern)))


def decode(packed: Tensor, layer: LayerSpec, plan: LayerPlan, code: Code) -> Tensor:
    """Inverse of :func:`encode`.

    Raises:
        ValueError: the bytes are no mask of as many values as the plan keeps.
    """
    kind = pattern(plan.pattern)
    n, k = kind.atoms(layer), plan.kept(layer) // kind.atom(layer)
    decoders: dict[Code, Callable[[], Tensor]] = {
        "bitmask": lambda: unpack_bits(packed, n),
        "elias-fano": lambda: _from_elias_fano(packed, n, k),
        "combination": lambda: _ungrouped(_from_combinations(packed, layer.numel // kind.width, kind), layer, kind),
    }
    atoms = decoders[code]()
    if int(atoms.sum()) != k:
        raise ValueError(f"{layer.name}: positions mark {int(atoms.sum())} of {n}, the plan {k}")
    return expand(atoms, layer, kind)


def _to_bits(numbers: Tensor, width: int) -> Tensor:
    """int64 ``(k,)`` → bool ``(k · width,)``, least significant bit first."""
    return torch.stack([(numbers >> i) & 1 for i in range(width)], 1).bool().flatten() if width else numbers.new_zeros(0).bool()


def _from_bits(bits: Tensor, count: int, width: int) -> Tensor:
    """Inverse of :func:`_to_bits`."""
    numbers = torch.zeros(count, dtype=torch.int64)
    for i in range(width):
        numbers |= bits.view(count, width)[:, i].long() << i
    return numbers


def _elias_fano(atoms: Tensor) -> Tensor:
    """The low bits of each index; then, for the i-th index, a one at place ``i + high part``."""
    index = atoms.nonzero()[:, 0]
    low, size = elias_fano_bits(len(atoms), len(index))
    unary = torch.zeros(size, dtype=torch.bool)
    unary[(index >> low) + torch.arange(len(index))] = True
    return torch.cat([_to_bits(index & ((1 << low) - 1), low), unary])


def _from_elias_fano(packed: Tensor, n: int, k: int) -> Tensor:
    low, size = elias_fano_bits(n, k)
    bits = unpack_bits(packed, k * low + size)
    ones = bits[k * low :].nonzero()[:, 0]
    if len(ones) != k:
        raise ValueError(f"the unary part marks {len(ones)} positions, the plan {k}")
    index = ((ones - torch.arange(k)) << low) | _from_bits(bits[: k * low], k, low)
    if int(index.max()) >= n:
        raise ValueError(f"position {int(index.max())} of {n}")
    return torch.zeros(n, dtype=torch.bool).index_fill_(0, index, True)


def _groups(atoms: Tensor, layer: LayerSpec, kind: Pattern) -> Tensor:
    """Mask of all values → ``(groups of m, m)``."""
    return atoms.view(layer.rows, layer.channels // kind.width, kind.width, -1).movedim(2, 3).reshape(-1, kind.width)


def _ungrouped(groups: Tensor, layer: LayerSpec, kind: Pattern) -> Tensor:
    return groups.view(layer.rows, layer.channels // kind.width, -1, kind.width).movedim(3, 2).flatten()


def _binomials(kind: Pattern) -> Tensor:
    """C(p, j) for all p below m and j from 1 to n, ``(m, n)``."""
    return torch.tensor([[comb(p, j) for j in range(1, kind.height + 1)] for p in range(kind.width)])


def _combinations(groups: Tensor, kind: Pattern) -> Tensor:
    """Each group's number in the combinatorial number system (Lehmer 1964): the sum of C(position j, j)."""
    places = groups.nonzero()[:, 1].view(-1, kind.height)
    return _to_bits(_binomials(kind).gather(0, places).sum(1), combination_bits(kind))


def _from_combinations(packed: Tensor, count: int, kind: Pattern) -> Tensor:
    """Greedily, from the last position to the first."""
    width, table = combination_bits(kind), _binomials(kind)
    rest, groups = _from_bits(unpack_bits(packed, count * width), count, width), torch.zeros(count, kind.width, dtype=torch.bool)
    for j in reversed(range(kind.height)):
        place = torch.searchsorted(table[:, j].contiguous(), rest, right=True) - 1
        groups.scatter_(1, place[:, None], True)
        rest = rest - table[place, j]
    return groups
