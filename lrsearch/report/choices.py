"""The members of a front that a person would choose from."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lrsearch.search.records import DENSE
from lrsearch.spec.front import hypervolume
from lrsearch.spec.score import KL_FLOOR, NOISE, Score

MOST = 14  # rows, besides the dense model's
POINTS = (0.0, 0.5, 1.0, 2.0)  # of the metric lost, that people ask for
STRAIGHT = 0.01  # of the front's spread: a front that bends by less has no knee
KNEE, SMALLEST, LARGEST = "knee", "smallest", "largest"


@dataclass(frozen=True)
class Choices:
    """Rows of a front.

    Attributes:
        rows: of the front, by its index, largest first, with ``why``: comma-separated, empty for rows that fill the gaps.
        left_out: how many members are of no use, as they guess.
        told: how well the score data tell losses of the metric apart, in a sentence; empty without a metric.
    """

    rows: pd.DataFrame
    left_out: int
    told: str

    @property
    def first(self) -> int | None:
        """The row to begin with: the knee, unless it loses more than people ask for, else the smallest that loses least of the metric,
        else the knee all the same, else the last; never the dense model beside others; None of an empty front."""
        compressed = self.rows[self.rows.source != DENSE]
        asked = compressed[~(100 * compressed.metric_drop > POINTS[-1])]  # all, where there is no metric
        for rows, reasons in ((asked, (KNEE, *map(_within, POINTS))), (compressed, (KNEE,))):
            for reason in reasons:
                for index, why in rows.why.items():
                    if reason in str(why).split(", "):
                        return int(str(index))
        return int(self.rows.index[-1]) if len(self.rows) else None


def choices(front: pd.DataFrame, objectives: Sequence[str], baseline: Score, most: int = MOST) -> Choices:
    """At most ``most`` rows: the smallest within each of ``POINTS`` that the data can tell, the knee, the ends, and between them those
    that add most to the hypervolume (greedily, Guerreiro et al. 2016).

    Args:
        front: as :func:`lrsearch.report.frame.front_frame` makes it.
        objectives: quality first, then costs.
        baseline: the dense model's score.
    """
    usable = front[~front.at_chance.astype(bool)] if not front.at_chance.all() else front
    cost, drop, points = usable[f"{objectives[1]}_ratio"].to_numpy(), 100 * usable.metric_drop.to_numpy(), _points(usable, objectives)
    error, why = _error(usable, baseline), dict[int, list[str]]()  # by position
    for limit in POINTS:
        within = np.flatnonzero((drop <= limit) & ((error <= limit) | (limit == 0)))
        if len(within) and (smallest := int(within[cost[within].argmin()])) not in why:  # what loses nothing loses no more than 2 points
            why[smallest] = [_within(limit)]
    if len(usable) > 2 and (knee := _knee(points)) is not None:
        why.setdefault(knee, []).append(KNEE)
    if len(usable):
        why.setdefault(int(cost.argmin()), []).append(SMALLEST)
        why.setdefault(int(cost.argmax()), []).append(LARGEST)
    chosen = sorted([*why, *_fill(points, list(why), most)])
    rows = usable.iloc[chosen].assign(why=[", ".join(why.get(i, ())) for i in chosen])
    return Choices(rows, len(front) - len(usable), _told(usable, baseline))


def _within(limit: float) -> str:
    return f"≤ {limit:g} points" if limit else "no loss"


def _points(front: pd.DataFrame, objectives: Sequence[str]) -> np.ndarray:
    """``(n, objectives)``, to be minimised, each from 0 to 1 over the front."""
    quality = np.log10(front.divergence.clip(lower=KL_FLOOR)) if objectives[0] == "divergence" else -front.metric
    points = np.stack([quality, *(front[f"{m}_ratio"] for m in objectives[1:])], 1).astype(np.float64)
    return (points - points.min(0)) / np.where(np.ptp(points, 0) > 0, np.ptp(points, 0), 1) if len(points) else points


def _knee(points: np.ndarray) -> int | None:
    """The point farthest below the line from one end to the other (Das 1999), over quality and the first cost; None on the line."""
    quality, cost = points[:, 0], points[:, 1]
    ends = cost.argmin(), cost.argmax()
    line = np.interp(cost, cost[list(ends)], quality[list(ends)])
    below = line - quality
    return int(below.argmax()) if below.max() > STRAIGHT else None


def _fill(points: np.ndarray, chosen: list[int], most: int) -> list[int]:
    reference, found = np.full(points.shape[1], 1.1), list[int]()
    while len(chosen) + len(found) < min(most, len(points)):
        left = [i for i in range(len(points)) if i not in chosen and i not in found]
        found.append(max(left, key=lambda i: hypervolume(points[[*chosen, *found, i]], reference)))
    return found


def _error(front: pd.DataFrame, baseline: Score) -> NDArray[np.float64]:
    """Twice the standard error of ``metric_drop``, in points, as if both models were wrong independently: at most as much; 0 unknown."""
    stderr = front.metric_stderr.fillna(0).to_numpy(dtype=np.float64)
    error: NDArray[np.float64] = 100 * NOISE * np.hypot(stderr, baseline.metric_stderr or 0)
    return error


def _told(front: pd.DataFrame, baseline: Score) -> str:
    if baseline.metric is None:
        return ""
    if baseline.metric == 1 and len(front):
        return "The dense model gets all of the score data right: they are too few, or too easy, to tell small losses of the metric."
    if not baseline.metric_stderr or not len(front):
        return "How well the score data tell losses of the metric is not known."
    examples = round(baseline.metric * (1 - baseline.metric) / baseline.metric_stderr**2)
    return f"{examples:,} score examples tell a drop of one model to ± {float(_error(front, baseline).min()):.1f} points or better (95 %)."
