"""Allocation: which choice each layer takes, a multiple-choice knapsack under every budget."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lrsearch.search.exchanges import Floats, Indices, Limits, PerMetric, fits, spend_slack
from lrsearch.search.one_limit import solved
from lrsearch.search.pairs import Joint, Pair, less
from lrsearch.search.several_limits import integer, relaxed

FEW = 500  # choices: for as many the integer program takes some hundredths of a second, and saves up to a seventh of the damage
ROUNDS, SHRINKS = 3, 0.1  # linear programs at most, each but the first for choices within a tenth of the damage before


@dataclass(frozen=True)
class Knapsack:
    """The choices of all layers, stacked; solved again and again with other weights.

    Attributes:
        layer: ``(choices,)`` index of the layer each choice belongs to, ascending.
        costs: metric → ``(choices,)`` cost of each choice.
        pairs: of layers that cost less together.
    """

    layer: Indices
    costs: PerMetric
    pairs: tuple[Pair, ...] = ()

    @cached_property
    def joint(self) -> Joint:
        """What is chosen from."""
        return Joint.of(self.layer, self.costs, self.pairs)

    def total(self, metric: str, picks: Indices) -> Floats:
        """``(…,)`` cost of ``picks`` (…, layers)."""
        total: Floats = self.costs[metric][picks].sum(-1) - less(self.pairs, self.layer, picks, metric)
        return total

    @property
    def layers(self) -> int:
        return int(self.layer[-1]) + 1

    def cheapest(self, metric: str) -> float:
        """Smallest sum of ``metric`` that any pick reaches."""
        values = self.joint.costs[metric]
        return float(np.minimum.reduceat(values, np.flatnonzero(np.r_[True, np.diff(self.joint.slot) > 0])).sum())

    def solve(self, damage: Floats, limits: Limits, allowed: NDArray[np.bool_] | None = None) -> Indices | None:
        """One choice per layer with little total damage and every cost within its limit.

        Under one limit, and where one of several alone binds, that is the least (:mod:`lrsearch.search.one_limit`), whatever decades
        the damage spans. Where several bind, a linear program is solved and rounded, and where choices are few, or rounding breaks a
        limit, the integer program too; what that leaves is spent by exchanges.

        Args:
            damage: ``(choices,)`` non-negative damage of each choice.
            limits: metric → largest allowed sum.
            allowed: ``(choices,)`` mask; a layer needs at least one allowed choice.

        Returns:
            ``(layers,)`` indices of the picked choices; None if no pick meets the limits, or none was found that meets several.
        """
        joint = self.joint if allowed is None else self.joint.where(self.joint.both(allowed))
        limits = limits or {"none": 0.0}
        costs = {m: joint.costs[m] if m in joint.costs else np.zeros(len(joint.slot)) for m in limits}
        pick = _picked(joint.slot, joint.summed(damage), costs, limits)
        return None if pick is None else joint.picks(pick, self.layer)


def _picked(layer: Indices, damage: Floats, costs: PerMetric, limits: Limits) -> Indices | None:
    for metric, limit in limits.items():
        pick = solved(layer, costs[metric], damage, limit)
        if pick is None or fits(pick, costs, limits):
            return pick
    return _several(layer, damage, costs, limits)


def _several(layer: Indices, damage: Floats, costs: PerMetric, limits: Limits) -> Indices | None:
    """Solve for limits of which several bind.

    Solvers have absolute tolerances. What alone harms more than a whole pick that is known is in no better one, so the rest is
    solved again at its own scale.
    """
    best, use = None, np.arange(len(layer))
    for _ in range(ROUNDS):
        within = layer[use], damage[use], {m: costs[m][use] for m in limits}, limits
        picks = [relaxed(*within)]
        if len(use) <= FEW or (picks[0] is None and best is None):
            picks.append(integer(*within))
        found = [spend_slack(layer, damage, costs, limits, use[pick]) for pick in picks if pick is not None]
        if not found:
            return best
        best = min([*found, *([] if best is None else [best])], key=lambda pick: float(damage[pick].sum()))
        if damage[best].sum() > SHRINKS * damage[use].max():
            return best
        use = np.flatnonzero(damage <= damage[best].sum())
    return best
