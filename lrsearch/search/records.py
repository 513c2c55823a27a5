"""Records: a plan with its costs and its scores at every rung, as kept in the Optuna storage."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from re import fullmatch
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from lrsearch.errors import StudyError
from lrsearch.spec.cost import Cost
from lrsearch.spec.front import non_dominated
from lrsearch.spec.plan import Plan
from lrsearch.spec.score import Score

SEARCH, DENSE = "search", "dense"
DENSE_INT8 = "dense int8"  # beside the trials of a front that was measured
CONTINUES, RUNG, TWIN, UNTRAINED, REASON, PLAN = "continues", "rung", "twin", "untrained", "reason", "plan"
RETRIED = "retried"  # the plan of a failed trial is tried once more


@dataclass(frozen=True)
class Record:
    """One plan.

    Attributes:
        number: of its first trial.
        source: ``"search"``, ``"dense"``, or the name of the control that made the plan.
        scores: one per rung reached, rung 0 first.
        complete: reached the last rung, so that it may be on the front.
        model: folder of the saved model below the study folder; of the twin if there is one.
        twin: an earlier record of the same plan, whose scores these are.
        untrained: the finetune made it worse, so it counts, and is saved, as it was before.
    """

    number: int
    source: str
    plan: Plan
    cost: Cost
    scores: tuple[Score, ...]
    complete: bool
    model: str
    twin: int | None = None
    untrained: bool = False

    @property
    def score(self) -> Score:
        """What the plan counts as: its score at the highest rung reached, or untrained where that is better."""
        return self.scores[0 if self.untrained else -1]

    @property
    def rung(self) -> int:
        """The highest rung reached."""
        return len(self.scores) - 1

    def attributes(self) -> dict[str, Any]:
        """As Optuna user attributes of the trial that reached the highest rung: each trial says all that is known of its plan."""
        return {
            PLAN: self.plan.to_dict(), "cost": self.cost.to_dict(), "scores": [s.to_dict() for s in self.scores], "model": self.model,
            **({} if self.twin is None else {TWIN: self.twin}), **({UNTRAINED: True} if self.untrained else {}),
        }

    @classmethod
    def of(cls, trial: FrozenTrial) -> "Record | None":
        """What ``trial`` says of its plan; None if it did not finish."""
        if trial.state not in (TrialState.COMPLETE, TrialState.PRUNED) or "scores" not in trial.user_attrs:
            return None
        a = trial.user_attrs
        scores, complete = tuple(Score.of(s) for s in a["scores"]), trial.state == TrialState.COMPLETE
        plan, cost = Plan.from_dict(a[PLAN]), Cost.from_dict(a["cost"])
        number, source = a.get(CONTINUES, trial.number), a.get("source", SEARCH)
        return cls(number, source, plan, cost, scores, complete, _model(a["model"], number), a.get(TWIN), a.get(UNTRAINED, False))


def _model(name: Any, number: int) -> str:
    """``name`` as a search makes it: a study that was sent to us may say anything, and models are written and removed there.

    Raises:
        StudyError: it is anything else.
    """
    if not isinstance(name, str) or not fullmatch(r"models/\d{4,}", name):
        remedy = "Do not use this study: somebody changed it."
        raise StudyError("models are in the study's own folder", value=name, place=f"trial {number}", remedy=remedy)
    return name


def is_settled(trial: FrozenTrial) -> bool:
    """Whether ``trial`` is done, under way or queued, or failed for good: if not, it was killed or given up, or is retried."""
    return trial.state != TrialState.FAIL or (REASON in trial.user_attrs and not trial.user_attrs.get(RETRIED))


def parameters_of(trial: FrozenTrial) -> dict[str, float]:
    """The parameters of a trial that may still be waiting for them."""
    parameters: dict[str, float] = trial.params or trial.system_attrs.get("fixed_params", {})
    return parameters


def merged(records: Iterable[Record]) -> list[Record]:
    """The latest record of each plan, in the order of their first trials; a twin's scores are those of the other."""
    latest: dict[int, Record] = {}
    for record in sorted(records, key=lambda r: (r.rung, r.number)):
        latest[record.number] = record
    twins = {n: latest[r.twin] for n, r in latest.items() if r.twin is not None}
    for number, other in twins.items():
        latest[number] = replace(latest[number], scores=other.scores, complete=other.complete, untrained=other.untrained)
    return [latest[number] for number in sorted(latest)]


def reached(records: Iterable[Record]) -> list[int]:
    """How many plans reached each rung, rung 0 first; twins count once."""
    rungs = [r.rung for r in records if r.twin is None]
    return [sum(r >= k for r in rungs) for k in range(max(rungs, default=-1) + 1)]


def values(record: Record, objectives: Sequence[str], rung: int | None = None) -> tuple[float, ...]:
    """Objective values at a rung, those that count by default, all to be minimised: the metric is negated."""
    score = record.score if rung is None else record.scores[rung]
    first = score.divergence if objectives[0] == "divergence" else -score.quality
    return (first, *(float(getattr(record.cost, m)) for m in objectives[1:]))


def front(records: Sequence[Record], objectives: Sequence[str]) -> list[Record]:
    """The non-dominated among the complete records, largest first cost first."""
    complete = [r for r in records if r.complete]
    if not complete:
        return []
    mask: NDArray[np.bool_] = non_dominated([values(r, objectives) for r in complete])
    members = [r for r, keep in zip(complete, mask, strict=True) if keep]
    return sorted(members, key=lambda r: -getattr(r.cost, objectives[1]))
