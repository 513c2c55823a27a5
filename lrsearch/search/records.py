"""Records: a trial's plan, costs and scores, as kept in the Optuna storage."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from lrsearch.spec.cost import Cost
from lrsearch.spec.front import non_dominated
from lrsearch.spec.plan import Plan
from lrsearch.spec.score import Score

SEARCH, DENSE = "search", "dense"


@dataclass(frozen=True)
class Record:
    """One finished trial.

    Attributes:
        source: ``"search"``, ``"dense"``, or the name of the control that made the plan.
        scores: one per rung reached, rung 0 first.
        complete: reached the last rung, so that it may be on the front.
        model: folder of the saved model below the study folder; of an earlier trial if that had the same plan.
    """

    number: int
    source: str
    plan: Plan
    cost: Cost
    scores: tuple[Score, ...]
    complete: bool
    model: str

    @property
    def score(self) -> Score:
        return self.scores[-1]

    def attributes(self) -> dict[str, Any]:
        """As Optuna user attributes."""
        return {
            "plan": self.plan.to_dict(), "cost": self.cost.to_dict(),
            "scores": [s.to_dict() for s in self.scores], "model": self.model,
        }

    @classmethod
    def of(cls, trial: FrozenTrial) -> "Record | None":
        """The record of ``trial``; None if it did not finish."""
        if trial.state not in (TrialState.COMPLETE, TrialState.PRUNED) or "scores" not in trial.user_attrs:
            return None
        a = trial.user_attrs
        scores = tuple(Score(**s) for s in a["scores"])
        source = a.get("source", SEARCH)
        complete = trial.state == TrialState.COMPLETE
        return cls(trial.number, source, Plan.from_dict(a["plan"]), Cost(**a["cost"]), scores, complete, a["model"])


def values(record: Record, objectives: Sequence[str]) -> tuple[float, ...]:
    """Objective values, all to be minimised: the metric is negated."""
    first = record.score.kl if objectives[0] == "kl" else -record.score.metric
    return (first, *(float(getattr(record.cost, m)) for m in objectives[1:]))


def front(records: Sequence[Record], objectives: Sequence[str]) -> list[Record]:
    """The non-dominated among the complete records, largest first cost first."""
    complete = [r for r in records if r.complete]
    if not complete:
        return []
    mask: NDArray[np.bool_] = non_dominated([values(r, objectives) for r in complete])
    members = [r for r, keep in zip(complete, mask, strict=True) if keep]
    return sorted(members, key=lambda r: -getattr(r.cost, objectives[1]))
