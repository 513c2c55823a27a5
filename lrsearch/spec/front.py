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


def dominance(points: ArrayLike, excuse: ArrayLike = 0.0) -> NDArray[np.bool_]:
    """``[i, j]``: whether point ``j`` dominates point ``i``: no worse in any objective, better in one.

    Args:
        points: ``(n, objectives)``.
        excuse: by how much ``i`` may be worse than ``j`` in the first objective and still count as no worse,
            ``(n, n)``: the noise of their difference.
    """
    p = np.asarray(points, dtype=np.float64)
    worse = p[:, None] - p[None]
    worse[..., 0] -= np.asarray(excuse, dtype=np.float64)
    return np.asarray((worse >= 0).all(-1) & (worse > 0).any(-1), dtype=np.bool_)


def wasteful(points: ArrayLike, excuse: ArrayLike, steepest: float) -> NDArray[np.bool_]:
    """``[i, j]``: whether point ``i`` saves next to nothing beside point ``j`` for what it loses.

    Joined with :func:`dominance` this widens the cone that a point dominates (Ikeda et al. 2001, alpha-domination), which stays
    transitive.

    Args:
        points: ``(n, objectives)``: a loss, then costs above 0. Losses of 0 and below have no logarithm; nothing is said of them.
        excuse: as in :func:`dominance`.
        steepest: by how much the logarithm of the loss may rise per logarithm of each cost saved.
    """
    p = np.asarray(points, dtype=np.float64)
    loss, cost = p[:, 0], p[:, 1:]
    worse, known = loss[:, None] - loss - np.asarray(excuse, dtype=np.float64) > 0, loss > 0
    left = (cost[:, None] / cost).min(-1, initial=1.0)
    return np.asarray(worse & known[:, None] & known & (loss[:, None] * left**steepest >= loss), dtype=np.bool_)


def ranks(dominated: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Non-dominated sorting (Deb et al. 2002): 0 for points that none dominates, 1 for those that only such do, and so on.

    Args:
        dominated: as :func:`dominance` gives it, ``(n, n)``.
    """
    rank = np.full(len(dominated), -1)
    level = 0
    while (left := rank < 0).any():
        rank[left & ~dominated[:, left].any(1)] = level
        level += 1
    return rank


def crowding(points: ArrayLike) -> NDArray[np.float64]:
    """Crowding distance (Deb et al. 2002) of points ``(n, objectives)`` of one rank: how much room each has; the outermost have ``inf``."""
    p = np.asarray(points, dtype=np.float64)
    distance = np.zeros(len(p))
    for values in p.T:
        order = values.argsort(kind="stable")
        gaps = (values[order[2:]] - values[order[:-2]]) / (np.ptp(values) or 1.0)
        distance[order[1:-1]] += gaps
        distance[order[[0, -1]]] = np.inf
    return distance


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
