"""Controls: allocations that cost nothing to compute, and that a search must beat."""

import numpy as np

from lrsearch.search.decoder import Decoder
from lrsearch.spec.plan import Plan

CONTROLS = ("uniform", "sparse-only", "low-rank-only", "knapsack")
FAMILIES = {"sparse-only": ("sparse",), "low-rank-only": ("low-rank",), "knapsack": None}


def control_plan(decoder: Decoder, control: str, targets: dict[str, float]) -> Plan | None:
    """The plan of one control at one target; None if that control cannot reach it.

    ``uniform`` gives every layer the same share of its cost; the others solve the knapsack on
    the profile's predicted damage, over one family or over all.
    """
    if control == "uniform":
        return decoder.uniform(targets)
    return decoder.solve(decoder.damage, targets, FAMILIES[control])


def ladder(low: float, high: float, points: int) -> list[float]:
    """``points`` targets, evenly spaced in ratio, from ``high`` down to ``low``."""
    return [high] if points == 1 else [float(v) for v in np.geomspace(high, low, points)]
