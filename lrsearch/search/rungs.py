"""Rungs: which plan is finetuned further. Pure functions of what each plan scored at the rungs that it reached.

Asynchronous successive halving (ASHA, Li et al. 2020) for several objectives (MO-ASHA, Schmucker et al. 2021): at each rung
the best part of the plans there may go on, in order of non-dominated rank and, within a rank, of crowding distance. Plans
compete with those of similar cost, as along a front of quality against cost nearly all are of rank 0. What saves next to
nothing for what it loses is not of rank 0, whatever it costs. The highest rung that has a plan to send on is served first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lrsearch.spec.front import as_good_for_less, crowding, dominance, ranks, wasteful

Floats = NDArray[np.float64]
Noise = Callable[[Sequence[int], int], Floats]

# Fronts rise by 3 to 8 here, by 18 at 90 % of the parameters, steeper than this only beside the dense model, where nothing is lost. The
# uniform controls of EfficientNet-Lite0, 0.5 to 2.3 % below the others' costs at 3 to 9 times the KL, rise by 80 to 370.
STEEPEST = 50.0  # power of the ratio of costs: saving 1 % excuses a loss 1.01**50, 65 %, higher


@dataclass(frozen=True)
class Entry:
    """A plan among its competitors.

    Attributes:
        number: names it; smaller is older.
        points: its objectives at each rung reached, rung 0 first, all to be minimised.
        sent: the highest rung that it was sent to: the one reached, or the next while it is under way or failed there.
        group: which plans are of similar cost.
        control: whether it is a control's; of each group's, the one that lost least goes on whatever its rank.
        always: whether it goes on to the last rung whatever happens.
    """

    number: int
    points: tuple[tuple[float, ...], ...]
    sent: int
    group: int = 0
    control: bool = False
    always: bool = False

    @property
    def rung(self) -> int:
        return len(self.points) - 1


def no_noise(numbers: Sequence[int], rung: int) -> Floats:  # noqa: ARG001
    """Of exact scores."""
    return np.zeros((len(numbers), len(numbers)))


def groups(costs: ArrayLike, centres: ArrayLike) -> list[int]:
    """Index of the centre ``(k, metrics)`` that each of ``costs`` ``(n, metrics)`` is nearest to in ratio."""
    ratio = np.log(np.asarray(costs, dtype=np.float64)[:, None] / np.asarray(centres, dtype=np.float64)[None])
    return [int(i) for i in np.square(ratio).sum(-1).argmin(1)]


def ranked(members: Sequence[Entry], rung: int, noise: Noise = no_noise) -> list[Entry]:
    """``members`` from the best to the worst at ``rung``.

    Who is dominated is behind whoever dominates it, whatever the noise. Noise lets the cheaper of two plans stand for the other, where
    what that loses less is within it. With equal rank and room, which the outermost have, the smaller loss comes first, then the
    smaller costs.
    """
    points = np.array([e.points[rung] for e in members])
    errors = noise([e.number for e in members], rung)
    rank = ranks(dominance(points) | wasteful(points, errors, STEEPEST), as_good_for_less(points, errors))
    room = np.zeros(len(members))
    for level in set(rank.tolist()):
        room[rank == level] = crowding(points[rank == level])
    return [members[i] for i in np.lexsort((np.array([e.number for e in members]), *points.T[::-1], -room, rank))]


def chosen(order: Sequence[Entry], rung: int, reduction: int, final: bool) -> list[Entry]:
    """Who of a group may go on from a rung, best first: a share of ``1 / reduction``, the control that lost least, and who always does.

    Args:
        order: the group's plans at the rung, from the best to the worst.
        rung: where.
        final: no plan is still to come: the share is rounded up, so that each group has a plan at the last rung.
    """
    count = -(-len(order) // reduction) if final else len(order) // reduction
    control = min((e for e in order if e.control), key=lambda e: e.points[rung], default=None)
    return [e for i, e in enumerate(order) if i < count or e is control or e.always]


def due(entries: Sequence[Entry], last: int, reduction: int, final: bool, noise: Noise = no_noise) -> tuple[Entry, int] | None:
    """The plan to send on next and the rung to send it to; None if none is due.

    Of several groups, the one comes first from which the fewest were sent to that rung.

    Args:
        entries: all plans.
        last: the highest rung.
        reduction: one in so many goes on.
        final: see :func:`chosen`.
        noise: numbers of plans and a rung → the noise of the differences of their first objective there, ``(n, n)``.
    """
    for rung in reversed(range(last)):
        waiting = []
        for group in sorted({e.group for e in entries}):
            members = [e for e in entries if e.group == group and e.rung >= rung]
            going = chosen(ranked(members, rung, noise), rung, reduction, final) if members else []
            ahead = sum(e.group == group and e.sent > rung for e in entries)
            waiting += [(ahead, group, e) for e in going if e.sent == rung][:1]
        if waiting:
            return min(waiting, key=lambda w: w[:2])[2], rung + 1
    return None
