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


def dominance(points: ArrayLike) -> NDArray[np.bool_]:
    """``[i, j]``: whether point ``j`` dominates point ``i``: no worse in any objective, better in one; points are ``(n, objectives)``."""
    p = np.asarray(points, dtype=np.float64)
    worse = p[:, None] - p[None]
    return np.asarray((worse >= 0).all(-1) & (worse > 0).any(-1), dtype=np.bool_)


def as_good_for_less(points: ArrayLike, noise: ArrayLike) -> NDArray[np.bool_]:
    """``[i, j]``: whether point ``j`` loses no more than point ``i`` beyond noise, and costs less: no more of anything, less of something.

    A cycle is impossible, as costs fall along it. A chain is possible whose last point loses far more than its first: see :func:`ranks`.

    Args:
        points: ``(n, objectives)``: a loss, then costs.
        noise: of the differences of the losses, ``(n, n)``.
    """
    p = np.asarray(points, dtype=np.float64)
    loss, cost = p[:, 0], p[:, 1:]
    saved = cost[:, None] - cost[None]
    cheaper = (saved >= 0).all(-1) & (saved > 0).any(-1)
    return np.asarray(cheaper & (loss[:, None] - loss[None] + np.asarray(noise, dtype=np.float64) >= 0), dtype=np.bool_)


def wasteful(points: ArrayLike, noise: ArrayLike, steepest: float) -> NDArray[np.bool_]:
    """``[i, j]``: whether point ``i`` saves next to nothing beside point ``j`` for what it loses.

    Joined with :func:`dominance` this widens the cone that a point dominates (Ikeda et al. 2001, alpha-domination). Without noise the
    two stay transitive; noise only takes pairs away, so that no cycle comes of it.

    Args:
        points: ``(n, objectives)``: a loss, then costs above 0. Losses of 0 and below have no logarithm; nothing is said of them.
        noise: of the differences of the losses, ``(n, n)``: less says nothing.
        steepest: by how much the logarithm of the loss may rise per logarithm of each cost saved.
    """
    p = np.asarray(points, dtype=np.float64)
    loss, cost = p[:, 0], p[:, 1:]
    worse, known = loss[:, None] - loss - np.asarray(noise, dtype=np.float64) > 0, loss > 0
    left = (cost[:, None] / cost).min(-1, initial=1.0)
    return np.asarray(worse & known[:, None] & known & (loss[:, None] * left**steepest >= loss), dtype=np.bool_)


def ranks(dominated: NDArray[np.bool_], excelled: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
    """Non-dominated sorting (Deb et al. 2002): 0 for points that none dominates, 1 for those that only such do, and so on.

    With ``excelled`` each rank is thinned, as an epsilon-approximate front is (Laumanns et al. 2002): a point waits for a later rank
    where one that stays excels it. One that is itself put behind puts nobody behind, so that a chain of small differences, which
    noise explains each, does not leave its cheapest member alone. Every point is of a later rank than those that dominate it.

    Args:
        dominated: ``[i, j]``: whether ``j`` dominates ``i``, ``(n, n)``, without cycles.
        excelled: ``[i, j]``: whether ``j`` excels ``i``, ``(n, n)``, without cycles.
    """
    rank, level = np.full(len(dominated), -1), 0
    while (left := rank < 0).any():
        front = left & ~dominated[:, left].any(1)
        rank[front if excelled is None else _kernel(excelled, front)] = level
        level += 1
    return rank


def _kernel(excelled: NDArray[np.bool_], among: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mask of the points of ``among`` that none of the mask excels: there is one such mask (von Neumann and Morgenstern 1944)."""
    kept, open_ = np.zeros(len(among), dtype=np.bool_), among.copy()
    while open_.any():
        kept |= open_ & ~excelled[:, open_].any(1)
        open_ &= ~kept & ~excelled[:, kept].any(1)
    return kept


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
