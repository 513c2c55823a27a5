"""Codes for the positions of S: its mask → the bytes that :mod:`lrsearch.spec.storage` predicts, and back."""

from collections.abc import Callable
from math import comb

import torch
from torch import Tensor

from lrsearch.compress.sparsify import allowed_atoms, contract, expand, pack_bits, unpack_bits
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.pattern import Pattern, pattern
from lrsearch.spec.plan import LayerPlan
from lrsearch.spec.storage import Code, combination_bits, elias_fano_bits


def encode(mask: Tensor, layer: LayerSpec, plan: LayerPlan, code: Code) -> Tensor:
    """Bytes of ``mask`` (groups, rows, columns)."""
    kind = pattern(plan.pattern)
    atoms, allowed = contract(mask, layer, kind), allowed_atoms(kind, layer)
    atoms = atoms if allowed is None else atoms[allowed]
    if code == "bitmask":
        return pack_bits(atoms)
    if code == "elias-fano":
        return pack_bits(_elias_fano(atoms))
    if code == "known":
        return pack_bits(atoms[:0])
    return pack_bits(_combinations(_groups(atoms, layer, kind), kind))


def decode(packed: Tensor, layer: LayerSpec, plan: LayerPlan, code: Code) -> Tensor:
    """Inverse of :func:`encode`.

    Raises:
        ValueError: the bytes are no mask of as many values as the plan keeps.
    """
    kind = pattern(plan.pattern)
    n, k, allowed = kind.choosable(layer), plan.kept(layer) // kind.atom(layer), allowed_atoms(kind, layer)
    decoders: dict[Code, Callable[[], Tensor]] = {
        "bitmask": lambda: unpack_bits(packed, n),
        "elias-fano": lambda: _from_elias_fano(packed, n, k),
        "combination": lambda: _ungrouped(_from_combinations(packed, n // _quota(kind)[1], kind), layer, kind),
        "known": lambda: torch.ones(n, dtype=torch.bool),
    }
    atoms = decoders[code]()
    if int(atoms.sum()) != k:
        raise ValueError(f"{layer.name}: positions mark {int(atoms.sum())} of {n}, the plan {k}")
    if allowed is not None:
        atoms = torch.zeros(kind.atoms(layer), dtype=torch.bool).index_put_((allowed,), atoms)
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
    """Mask of the atoms → ``(groups of m, m)``."""
    (_, m), (shape, axis) = _quota(kind), _grouping(layer, kind)
    return atoms.view(shape).movedim(axis, -1).reshape(-1, m)


def _ungrouped(groups: Tensor, layer: LayerSpec, kind: Pattern) -> Tensor:
    shape, axis = _grouping(layer, kind)
    return groups.view(*shape[:axis], *shape[axis + 1 :], shape[axis]).movedim(-1, axis).flatten()


def _grouping(layer: LayerSpec, kind: Pattern) -> tuple[tuple[int, ...], int]:
    """The shape of the atoms, and its axis along which each group of m lies."""
    layout = kind.layout(layer)
    assert layout.quota_axis is not None, "a pattern with a quota says along what"
    return layout.outer, layout.quota_axis


def _quota(kind: Pattern) -> tuple[int, int]:
    assert kind.quota is not None, "combinations are for patterns with a quota"
    return kind.quota


def _binomials(kind: Pattern) -> Tensor:
    """C(p, j) for all p below m and j from 1 to n, ``(m, n)``."""
    n, m = _quota(kind)
    return torch.tensor([[comb(p, j) for j in range(1, n + 1)] for p in range(m)])


def _combinations(groups: Tensor, kind: Pattern) -> Tensor:
    """Each group's number in the combinatorial number system (Lehmer 1964): the sum of C(position j, j)."""
    places = groups.nonzero()[:, 1].view(-1, _quota(kind)[0])
    return _to_bits(_binomials(kind).gather(0, places).sum(1), combination_bits(kind))


def _from_combinations(packed: Tensor, count: int, kind: Pattern) -> Tensor:
    """Greedily, from the last position to the first."""
    (n, m), width, table = _quota(kind), combination_bits(kind), _binomials(kind)
    rest, groups = _from_bits(unpack_bits(packed, count * width), count, width), torch.zeros(count, m, dtype=torch.bool)
    for j in reversed(range(n)):
        place = torch.searchsorted(table[:, j].contiguous(), rest, right=True) - 1
        groups.scatter_(1, place[:, None], True)
        rest = rest - table[place, j]
    return groups
