"""Expected hypervolume improvement where the costs are known and only the quality is uncertain."""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

Floats = NDArray[np.float64]


def expected_gain(
    mean: Floats, stderr: Floats, costs: Floats, points: Floats, reference: Floats, floor: float = -np.inf,
) -> Floats:
    """What each candidate is expected to add to the hypervolume (Emmerich et al. 2006); everything is minimised.

    A candidate whose first objective turns out as y dominates, at every level above y, what its costs dominate there. So the
    expectation is a sum over the strips between the points' levels: the expected depth in the strip times the area.

    Args:
        mean: ``(n,)`` of the first objective, normally distributed.
        stderr: ``(n,)`` standard deviation of it, above 0.
        costs: ``(n, costs)`` the other objectives.
        points: ``(m, 1 + costs)`` what is known already.
        reference: ``(1 + costs,)`` nothing beyond it counts.
        floor: of the first objective; nothing below it counts.

    Returns:
        ``(n,)``.
    """
    def depth(level: float) -> Floats:
        z = (level - mean) / stderr
        below: Floats = stderr * (z * norm.cdf(z) + norm.pdf(z))
        return below

    return _strips(depth, costs, points, reference, floor)


def _gain(costs: Floats, points: Floats, reference: Floats) -> Floats:
    """Volume that each of ``costs`` (n, k) dominates and ``points`` (m, k) do not."""
    if costs.shape[1] == 0:
        return np.full(len(costs), float(len(points) == 0))
    return _strips(lambda level: np.maximum(level - costs[:, 0], 0), costs[:, 1:], points, reference)


def _strips(depth, costs: Floats, points: Floats, reference: Floats, floor: float = -np.inf) -> Floats:  # type: ignore[no-untyped-def]
    levels = [floor, *np.unique(points[points[:, 0] < reference[0], 0]), reference[0]]
    total, before = np.zeros(len(costs)), depth(floor) if np.isfinite(floor) else np.zeros(len(costs))
    for low, high in pairwise(levels):
        after = depth(high)
        area = _gain(costs, points[points[:, 0] <= low, 1:], reference[1:])
        total += (after - before) * area
        before = after
        if not area.any():
            break
    return total
