"""Pairs of layers whose choices together cost less than each alone: for the knapsack they are one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lrsearch.search.exchanges import Floats, Indices, PerMetric

ALONE = -1  # the second choice of what is not a pair


class Pair(NamedTuple):
    """Two layers, none of which is in another pair.

    Attributes:
        first, second: their indices.
        less: metric → ``(choices of first, choices of second)`` what they cost less together.
    """

    first: int
    second: int
    less: PerMetric


@dataclass(frozen=True)
class Joint:
    """What a knapsack chooses from: a choice of a layer, or one for each layer of a pair.

    Attributes:
        slot: ``(n,)`` index of the layer, or the pair, ascending.
        first, second: ``(n,)`` indices of the choices; ``second`` is ``ALONE`` where there is none.
        costs: metric → ``(n,)``.
    """

    slot: Indices
    first: Indices
    second: Indices
    costs: PerMetric

    @classmethod
    def of(cls, layer: Indices, costs: PerMetric, pairs: Sequence[Pair]) -> "Joint":
        """All combinations; ``layer`` and ``costs`` are the choices' own, ``(choices,)``."""
        members = [np.flatnonzero(layer == k) for k in range(int(layer[-1]) + 1)]
        seconds = {pair.second for pair in pairs}
        pair_of = {pair.first: pair for pair in pairs}
        first, second, slot = list[Indices](), list[Indices](), list[Indices]()
        less: dict[str, list[Floats]] = {m: [] for m in costs}
        for k in (k for k in range(len(members)) if k not in seconds):
            pair = pair_of.get(k)
            others = members[pair.second] if pair else np.array([ALONE])
            first.append(np.repeat(members[k], len(others)))
            second.append(np.tile(others, len(members[k])))
            slot.append(np.full(len(first[-1]), len(slot)))
            for m in costs:
                less[m].append(pair.less[m].ravel() if pair and m in pair.less else np.zeros(len(first[-1])))
        made = cls(np.concatenate(slot), np.concatenate(first), np.concatenate(second), {})
        return cls(made.slot, made.first, made.second, {m: made.summed(costs[m]) - np.concatenate(less[m]) for m in costs})

    def summed(self, values: Floats) -> Floats:
        """``(n,)`` of the choices' own ``values``, ``(choices,)``."""
        total: Floats = values[self.first] + np.where(self.second == ALONE, 0.0, values[self.second])
        return total

    def both(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """``(n,)`` whether all choices are in ``mask`` (choices,)."""
        both: NDArray[np.bool_] = mask[self.first] & ((self.second == ALONE) | mask[self.second])
        return both

    def where(self, use: NDArray[np.bool_]) -> "Joint":
        """Those in ``use`` (n,), of which each slot has some."""
        return Joint(self.slot[use], self.first[use], self.second[use], {m: values[use] for m, values in self.costs.items()})

    def picks(self, chosen: Indices, layer: Indices) -> Indices:
        """``(…, layers)`` choices of each layer, of ``chosen`` (…, slots), indices of this."""
        found = np.empty((*chosen.shape[:-1], int(layer[-1]) + 1), dtype=np.int64)
        sample = chosen.reshape(-1, chosen.shape[-1])[0]
        paired = self.second[sample] != ALONE
        found[..., layer[self.first[sample]]] = self.first[chosen]
        found[..., layer[self.second[sample[paired]]]] = self.second[chosen[..., paired]]
        return found


def less(pairs: Sequence[Pair], layer: Indices, picks: Indices, metric: str) -> Floats:
    """``(…,)`` what ``picks`` (…, layers) cost less than their choices alone."""
    starts = np.searchsorted(layer, np.arange(int(layer[-1]) + 1))
    total = np.zeros(picks.shape[:-1])
    for pair in pairs:
        if metric in pair.less:
            total += pair.less[metric][picks[..., pair.first] - starts[pair.first], picks[..., pair.second] - starts[pair.second]]
    return total


def undominated(joint: Joint, layer: Indices, damage: Floats, kind: Indices, costs: PerMetric, pairs: Sequence[Pair]) -> NDArray[np.bool_]:
    """``(n,)`` whether no other choice of the same kind is better in damage and, whatever the other layer of a pair does, in every cost.

    Such a choice is in no plan of least damage, whatever weights layers and kinds have.

    Args:
        damage, kind: ``(choices,)``.
        costs: metric → ``(choices,)``, of all metrics that matter.
        pairs: of layers.
    """
    keep = np.ones(len(layer), dtype=bool)
    halves: Mapping[int, tuple[Pair, int]] = {p.first: (p, 0) for p in pairs} | {p.second: (p, 1) for p in pairs}
    for k in range(int(layer[-1]) + 1):
        members = np.flatnonzero(layer == k)
        table = [damage[members][:, None], *(costs[m][members][:, None] for m in costs)]
        if k in halves:
            pair, axis = halves[k]
            ends = [pair.less[m] if axis == 0 else pair.less[m].T for m in costs if m in pair.less]
            table += [costs[m][members][:, None] - end for m, end in zip((m for m in costs if m in pair.less), ends, strict=True)]
        values = np.unique(np.concatenate(table, 1), axis=1)
        for i, own in enumerate(values):
            alike = kind[members] == kind[members[i]]
            better = alike & (values <= own).all(1) & ((values < own).any(1) | (np.arange(len(members)) < i))
            keep[members[i]] = not better.any()
    return joint.both(keep)
