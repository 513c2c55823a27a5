"""Dominance and hypervolume; every objective here is to be minimised."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def non_dominated(points: ArrayLike) -> NDArray[np.bool_]:
    """Mask of the points ``(n, objectives)`` that no other dominates; of equal points the first stays."""
    p = np.asarray(points, dtype=np.float64)
    keep = np.ones(len(p), dtype=np.bool_)
    for i in range(len(p)):
        no_worse = (p <= p[i]).all(1)
        better = no_worse & (p < p[i]).any(1)
        equal_before = no_worse & (p == p[i]).all(1) & (np.arange(len(p)) < i)
        keep[i] = not (better | equal_before).any()
    return keep


def hypervolume(points: ArrayLike, reference: ArrayLike) -> float:
    """Volume dominated by ``points`` (n, objectives) below ``reference`` (objectives,)."""
    p, r = np.asarray(points, dtype=np.float64).reshape(-1, np.size(reference)), np.asarray(reference, dtype=np.float64)
    p = p[(p < r).all(1)]
    if not len(p):
        return 0.0
    if len(r) == 1:
        return float(r[0] - p.min())
    p = p[p[:, 0].argsort()]
    edges = np.append(p[1:, 0], r[0]) - p[:, 0]
    return float(sum(w * hypervolume(p[: i + 1, 1:], r[1:]) for i, w in enumerate(edges) if w > 0))
