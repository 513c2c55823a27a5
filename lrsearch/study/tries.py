"""How often a plan was tried in vain, as the trials that failed have it: each takes the counts over from the one before."""

from collections.abc import Mapping, Sequence

from optuna.trial import FrozenTrial

from lrsearch.search.records import CONTINUES, PLAN, REASON, RUNG, SEARCH, is_settled, parameters_of
from lrsearch.spec.plan import Plan

RAISED, DIED, INTERRUPTED = "raised", "died", "interrupted"
TRIES = 3  # of a plan at a rung that ends in an error, and as many that end its worker
Identity = tuple[str, int | None, int | None, Mapping[str, float]]  # source; first trial and rung, if a further one; parameters


def deaths(trial: FrozenTrial, failed: Sequence[FrozenTrial]) -> int:
    """How many workers ended at the plan of ``trial`` at its rung, with that of ``trial``, unless it was interrupted.

    Args:
        failed: are looked at whatever their source: what ends a worker is the plan.
    """
    plan, rung = trial.user_attrs.get(PLAN), trial.user_attrs.get(RUNG)
    same = [t for t in failed if plan and t.user_attrs.get(PLAN) == plan and t.user_attrs.get(RUNG) == rung]
    before: int = max(t.user_attrs.get(DIED, 0) for t in (trial, *same))
    return before + (INTERRUPTED not in trial.user_attrs)


def tried(failed: Sequence[FrozenTrial], wanted: Identity) -> dict[str, int]:
    """How often what is ``wanted`` was tried in vain, as user attributes of the next try."""
    before = [t.user_attrs for t in failed if not is_settled(t) and _identity(t) == wanted]
    counts = {key: max((a.get(key, 0) for a in before), default=0) for key in (RAISED, DIED)}
    return {key: count for key, count in counts.items() if count}


def given_up(failed: Sequence[FrozenTrial], plan: Plan) -> str | None:
    """Why an equal plan, whatever its source, is not tried again after ``TRIES`` times; None if there is none."""
    settled = (t.user_attrs for t in failed if is_settled(t) and CONTINUES not in t.user_attrs)
    found = (a for a in settled if PLAN in a and max(a.get(DIED, 0), a.get(RAISED, 0)) >= TRIES)
    return next((a[REASON] for a in found if Plan.from_dict(a[PLAN]) == plan), None)


def _identity(trial: FrozenTrial) -> Identity:
    a = trial.user_attrs
    return a.get("source", SEARCH), a.get(CONTINUES), a.get(RUNG), parameters_of(trial)
