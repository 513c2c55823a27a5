"""Allocation: which choice each layer takes, a multiple-choice knapsack under every budget."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, linprog, milp

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
PerMetric = Mapping[str, Floats]
Limits = Mapping[str, float]


@dataclass(frozen=True)
class Knapsack:
    """The choices of all layers, stacked; solved again and again with other weights.

    Attributes:
        layer: ``(choices,)`` index of the layer each choice belongs to, ascending.
        costs: metric → ``(choices,)`` cost of each choice.
    """

    layer: Indices
    costs: PerMetric

    @property
    def layers(self) -> int:
        return int(self.layer[-1]) + 1

    def cheapest(self, metric: str) -> float:
        """Smallest sum of ``metric`` that any pick reaches."""
        return float(self._least(self.costs[metric]).sum())

    def _least(self, values: Floats) -> Floats:
        return np.minimum.reduceat(values, np.flatnonzero(np.r_[True, np.diff(self.layer) > 0]))

    def solve(self, damage: Floats, limits: Limits, allowed: NDArray[np.bool_] | None = None) -> Indices | None:
        """One choice per layer with least total damage and every cost within its limit.

        The linear relaxation leaves at most one split layer per limit; it is rounded to the
        cheaper side and the slack is then spent by exchanges, largest gain first. The total
        damage is within one layer's step of the optimum. Where rounding breaks one of several
        limits, the integer program is solved instead.

        Args:
            damage: ``(choices,)`` non-negative damage of each choice.
            limits: metric → largest allowed sum.
            allowed: ``(choices,)`` mask; a layer needs at least one allowed choice.

        Returns:
            ``(layers,)`` indices of the picked choices, or None if no pick meets the limits.
        """
        use = np.flatnonzero(allowed) if allowed is not None else np.arange(len(self.layer))
        layer, damage = self.layer[use], damage[use]
        costs = {m: self.costs[m][use] for m in limits}
        share = self._relaxed(layer, damage, costs, limits)
        if share is None:
            return None
        pick = self._rounded(layer, share, costs, limits)
        if pick is None and len(limits) > 1:
            pick = self._integer(layer, damage, costs, limits)
        if pick is None:
            return None
        return use[_spend_slack(layer, damage, costs, limits, pick)]

    def _relaxed(self, layer: Indices, damage: Floats, costs: PerMetric, limits: Limits) -> Floats | None:
        rows, ends = _scaled(costs, limits) if limits else (None, None)
        result = linprog(
            damage / max(float(damage.max()), 1e-300), A_ub=rows, b_ub=ends,
            A_eq=self._one_each(layer), b_eq=np.ones(self.layers), method="highs",
        )
        return result.x if result.status == 0 else None

    def _integer(self, layer: Indices, damage: Floats, costs: PerMetric, limits: Limits) -> Indices | None:
        rows, ends = _scaled(costs, limits)
        result = milp(
            damage / max(float(damage.max()), 1e-300), integrality=np.ones(len(layer)), bounds=Bounds(0, 1),
            constraints=[LinearConstraint(self._one_each(layer), 1, 1), LinearConstraint(rows, ub=ends)],
            options={"mip_rel_gap": 0.02, "time_limit": 20},
        )
        if result.x is None:
            return None
        pick = np.array([int(np.flatnonzero(layer == k)[result.x[layer == k].argmax()]) for k in range(self.layers)])
        return pick if _fits(pick, costs, limits) else None

    def _one_each(self, layer: Indices) -> sp.csr_array:
        n = len(layer)
        return sp.csr_array((np.ones(n), (layer, np.arange(n))), shape=(self.layers, n))

    def _rounded(self, layer: Indices, share: Floats, costs: PerMetric, limits: Limits) -> Indices | None:
        """Each layer's largest share; where that breaks a limit, the layers that lower it most cheaply."""
        pick = np.array([int(np.flatnonzero(layer == k)[share[layer == k].argmax()]) for k in range(self.layers)])
        over = sum((costs[m] / _unit(limits[m]) for m in limits), np.zeros(len(layer)))
        for k in np.flatnonzero([np.count_nonzero(share[layer == k] > 1e-9) > 1 for k in range(self.layers)]):
            split = np.flatnonzero((layer == k) & (share > 1e-9))
            pick[k] = split[over[split].argmin()]
        for k in np.argsort([-over[i] for i in pick]):
            if _fits(pick, costs, limits):
                return pick
            members = np.flatnonzero(layer == k)
            pick[k] = members[over[members].argmin()]
        return pick if _fits(pick, costs, limits) else None


def _unit(limit: float) -> float:
    return limit if limit > 0 else 1.0


def _scaled(costs: PerMetric, limits: Limits) -> tuple[Floats, Floats]:
    """Each metric's costs as a share of its limit, ``(metrics, choices)``, and the limits likewise, ``(metrics,)``."""
    return np.stack([costs[m] / _unit(limits[m]) for m in limits]), np.array([limits[m] / _unit(limits[m]) for m in limits])


def _fits(pick: Indices, costs: PerMetric, limits: Limits) -> bool:
    return all(costs[m][pick].sum() <= limits[m] for m in limits)


def _spend_slack(layer: Indices, damage: Floats, costs: PerMetric, limits: Limits, pick: Indices) -> Indices:
    pick = pick.copy()
    while True:
        gain = damage[pick][layer] - damage
        for m in limits:
            slack = limits[m] - costs[m][pick].sum()
            gain = np.where(costs[m] - costs[m][pick][layer] <= slack, gain, 0.0)
        best = int(gain.argmax())
        if gain[best] <= 0:
            return pick
        pick[layer[best]] = best
