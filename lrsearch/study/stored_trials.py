"""The trials of a study as they are stored, read without opening the study for a search."""

from datetime import datetime
from typing import Any

from optuna.study import Study
from optuna.trial import TrialState

from lrsearch.errors import StudyError
from lrsearch.search.records import CONTINUES
from lrsearch.study.storage import let_go, opened, place_of, reading, study_in
from lrsearch.study.study_folder import StudyFolder

IDENTITY = "identity"  # attribute of a study: what it is of


def open_storage(folder: StudyFolder) -> Study:
    """The Optuna study in ``folder``, without opening it for a search.

    Raises:
        StudyError: the storage is missing or damaged.
    """
    place, remedy = place_of(folder), "Run lrsearch search first."
    with reading(place, remedy):
        found = study_in(opened(place), place) if place.kind != "sqlite" or place.path.exists() else None
    if found is None:
        raise StudyError("must be the Optuna storage of a search", value="no such study", place=str(place), remedy=remedy)
    return found


def finish_times(study: Study) -> dict[int, datetime]:
    """First trial of a plan → when its last rung was done."""
    done = [t for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)) if t.datetime_complete]
    return {t.user_attrs.get(CONTINUES, t.number): t.datetime_complete for t in sorted(done, key=lambda t: t.number) if t.datetime_complete}


def stored_identity(folder: StudyFolder) -> dict[str, Any] | None:
    """What the trials in ``folder`` are of: empty if they are of a study that did not keep it, None if there are none.

    Raises:
        StudyError: the storage is damaged.
    """
    place = place_of(folder)
    if place.kind == "sqlite" and not place.path.exists():
        return None
    with reading(place, "Give another --out."):
        storage = opened(place)
        study = study_in(storage, place)
        kept = None if study is None else study.user_attrs.get(IDENTITY, {} if study.get_trials(deepcopy=False) else None)
        let_go(storage)
    return kept
