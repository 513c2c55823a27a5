"""Exchanges: what is left of the limits is spent on single layers."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
PerMetric = Mapping[str, Floats]
Limits = Mapping[str, float]


def fits(pick: Indices, costs: PerMetric, limits: Limits) -> bool:
    """Whether ``pick`` (layers,) is within every limit; costs are ``(choices,)`` by metric."""
    return all(costs[m][pick].sum() <= limits[m] for m in limits)


def spend_slack(layer: Indices, damage: Floats, costs: PerMetric, limits: Limits, pick: Indices) -> Indices:
    """``pick`` (layers,) after exchanges of single choices that fit, largest gain first, until none gains.

    Args:
        layer: ``(choices,)`` index of the layer each choice belongs to, ascending.
        damage: ``(choices,)``.
        costs: metric → ``(choices,)``.
        limits: metric → largest allowed sum.
        pick: is within all limits.
    """
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
