"""One limit: the multiple-choice knapsack by convex hulls, with branch and bound.

The linear relaxation is solved by sorting (Sinha and Zoltners 1979): each layer starts at its cheapest choice and climbs the lower
convex hull of its damage over cost; the steps of all layers are taken in the order of the damage that each saves per cost, until one
does not fit. That one splits its layer, and its two ends are what is branched on. Steps are compared by their quotients alone, so no
scale and no tolerance matters, whatever decades the damage spans.
"""

from collections.abc import Sequence
from heapq import heappop, heappush
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from lrsearch.search.exchanges import Floats, Indices, spend_slack

NODES = 200  # branched on at most; the controls of a MobileNetV3-Small need 48 at most
GAP = 1e-3  # share of the damage that the optimum may save beyond what is returned


class Node(NamedTuple):
    """Some choices of each layer, and what the relaxation over them says.

    Attributes:
        bound: no pick of these choices harms less.
        age: of equal bounds the older is branched on first.
        split: the choices before and after the step that did not fit; None if all fitted.
        menus: of each layer, its choices from the cheapest to the dearest.
        hulls: of each layer, those on the hull.
    """

    bound: float
    age: int
    split: tuple[int, int] | None
    menus: list[list[int]]
    hulls: list[list[int]]


class OneLimit:
    """Arguments as :func:`solved`."""

    def __init__(self, layer: Indices, cost: Floats, damage: Floats, limit: float) -> None:
        self.layer, self.cost, self.damage, self.limit = layer, cost, damage, limit
        self._costs, self._harm = cost.tolist(), damage.tolist()
        self.best: Indices | None = None
        self.least, self.visited = np.inf, 0

    def solve(self) -> Indices | None:
        """Branch where the bound is least, until none is below the best pick found, or ``NODES`` were branched on."""
        order, ends = np.lexsort((self.damage, self.cost, self.layer)), np.flatnonzero(np.diff(self.layer)) + 1
        menus = [part.tolist() for part in np.split(order, ends)]
        waiting: list[Node] = []
        self._visit(waiting, menus, [self._hull(menu) for menu in menus])
        for _ in range(NODES):
            if not waiting or waiting[0].bound >= (1 - GAP) * self.least:
                break
            node = heappop(waiting)
            assert node.split is not None, "only such are kept"
            low, high = (self._costs[i] for i in node.split)
            k = int(self.layer[node.split[0]])
            for half in ([i for i in node.menus[k] if self._costs[i] <= low], [i for i in node.menus[k] if self._costs[i] >= high]):
                menus, hulls = node.menus.copy(), node.hulls.copy()
                menus[k], hulls[k] = half, self._hull(half)
                self._visit(waiting, menus, hulls)
        return self.best

    def _visit(self, waiting: list[Node], menus: list[list[int]], hulls: list[list[int]]) -> None:
        """Solve the relaxation, keep its rounding if it is the best yet, and let it wait where a better one may be."""
        pick = np.array([hull[0] for hull in hulls])
        if self.cost[pick].sum() > self.limit:
            return
        bound, split = self._climb(pick, hulls)
        found = spend_slack(self.layer, self.damage, {"": self.cost}, {"": self.limit}, pick)
        if (harm := float(self.damage[found].sum())) < self.least:
            self.best, self.least = found, harm
        self.visited += 1
        if split and bound < (1 - GAP) * self.least:
            heappush(waiting, Node(bound, self.visited, split, menus, hulls))

    def _climb(self, pick: Indices, hulls: Sequence[Sequence[int]]) -> tuple[float, tuple[int, int] | None]:
        """Take every step that fits, in ``pick``; returns the bound, and the step that did not fit."""
        low, high = np.array([step for hull in hulls for step in pairwise(hull)], dtype=np.int64).reshape(-1, 2).T
        dearer, saved = self.cost[high] - self.cost[low], self.damage[low] - self.damage[high]
        order = np.argsort(-saved / dearer, kind="stable")
        taken = int(np.searchsorted(self.cost[pick].sum() + dearer[order].cumsum(), self.limit, side="right"))
        pick[self.layer[high[order[:taken]]]] = high[order[:taken]]
        while self.cost[pick].sum() > self.limit:  # the running sum was rounded
            taken -= 1
            pick[self.layer[low[order[taken]]]] = low[order[taken]]
        bound = float(self.damage[pick].sum())
        if taken == len(order):
            return bound, None
        split = order[taken]
        share = (self.limit - self.cost[pick].sum()) / dearer[split]
        return bound - float(share * saved[split]), (int(low[split]), int(high[split]))

    def _hull(self, menu: Sequence[int]) -> list[int]:
        """The choices of ``menu`` on the lower convex hull of damage over cost, from the cheapest to the least damaging."""
        hull: list[int] = []
        slopes: list[float] = []  # damage saved per cost by the step to each, falling
        for i in menu:
            if hull and self._harm[i] >= self._harm[hull[-1]]:
                continue
            slope = np.inf
            while hull:
                slope = (self._harm[hull[-1]] - self._harm[i]) / (self._costs[i] - self._costs[hull[-1]])
                if slope < slopes[-1]:
                    break
                hull.pop()
                slopes.pop()
                slope = np.inf
            hull.append(i)
            slopes.append(slope)
        return hull


def solved(layer: Indices, cost: Floats, damage: Floats, limit: float) -> Indices | None:
    """The pick of least damage within one limit, to ``GAP`` unless ``NODES`` nodes are too few; of equal choices the first.

    Args:
        layer: ``(choices,)`` index of the layer each choice belongs to, ascending from 0 without gaps.
        cost: ``(choices,)``.
        damage: ``(choices,)`` not negative.
        limit: the largest allowed sum of costs.

    Returns:
        ``(layers,)`` indices of the picked choices; None if even the cheapest cost more than ``limit``.
    """
    return OneLimit(layer, cost, damage, limit).solve()
