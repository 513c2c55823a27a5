"""Recovered models: finetuned at length after the search, kept beside its own, and records like them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lrsearch.compress import artifact
from lrsearch.search.records import Record, merged
from lrsearch.spec.score import Score
from lrsearch.study.trials import open_storage

RECOVERED = "recovered-"


def recovered_name(model: str) -> str:
    """Below the study folder, where the recovered form of ``models/NNNN`` goes."""
    return f"models/{RECOVERED}{Path(model).name}"


def read_records(folder: Path) -> list[Record]:
    """The plans of the study in ``folder``, without opening it for a search.

    Raises:
        StudyError: the storage is missing or damaged.
    """
    return merged(r for r in map(Record.of, open_storage(folder).get_trials(deepcopy=False)) if r)


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
            found.append(replace(trial, scores=scores, complete=True, model=f"models/{path.name}", untrained=False))
    return found
