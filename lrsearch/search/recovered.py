"""Recovered models: finetuned at length after the search, kept beside its own, and records like them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import optuna
from sqlalchemy.exc import SQLAlchemyError

from lrsearch.compress import artifact
from lrsearch.errors import StudyError
from lrsearch.search.records import Record, merged
from lrsearch.spec.score import Score

RECOVERED = "recovered-"


def recovered_name(model: str) -> str:
    """Below the study folder, where the recovered form of ``models/NNNN`` goes."""
    return f"models/{RECOVERED}{Path(model).name}"


def read_records(folder: Path) -> list[Record]:
    """The plans of the study in ``folder``, without opening it for a search.

    Raises:
        StudyError: the storage is missing or damaged.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = folder / "study.db"
    try:
        if not path.exists():
            raise KeyError("no such file")
        study = optuna.load_study(study_name="study", storage=f"sqlite:///{path}")
        return merged(r for r in map(Record.of, study.get_trials(deepcopy=False)) if r)
    except (SQLAlchemyError, KeyError) as error:
        shown, remedy = str(error).splitlines()[0], "Run lrsearch search first."
        raise StudyError("must be the Optuna storage of a search", value=shown, place=str(path), remedy=remedy) from error


def recovered_records(folder: Path, records: Sequence[Record]) -> list[Record]:
    """A record of each recovered model in ``folder``: that of its trial, with the new score behind the others.

    Raises:
        ArtifactError: a recovered model's ``plan.json`` is damaged.
    """
    found = []
    for path in sorted((folder / "models").glob(f"{RECOVERED}*")):
        plan, about = artifact.read_plan(path)
        if trial := next((r for r in records if r.number == about["recovered"]["trial"] and r.plan == plan), None):
            scores = (*trial.scores, Score(**about["score"]))
            found.append(replace(trial, scores=scores, complete=True, model=f"models/{path.name}"))
    return found
