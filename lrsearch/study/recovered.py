"""What a study came to, read from its folder; and its recovered models: finetuned at length, kept beside its own."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from lrsearch.compress import artifact
from lrsearch.errors import ArtifactError, StudyError
from lrsearch.search.records import DENSE, Record, merged
from lrsearch.spec.cost import Cost
from lrsearch.spec.score import Chance, Score
from lrsearch.study.latency import measured_whole, over_budget
from lrsearch.study.study_folder import StudyFolder
from lrsearch.study.trials import open_storage, stored_identity
from lrsearch.task.registry import TASKS
from lrsearch.task.softmax import Classification


@dataclass(frozen=True)
class FinishedStudy:
    """A study as its storage has it, without model and data.

    Attributes:
        records: the plans.
        recovered: those that were finetuned at length.
        dense: the dense model's cost.
        baseline: its score.
        chance: what a model scores that does not look at its inputs, if that is known.
        over: trials that are over the latency budget, measured whole.
        measured: trial → what it took whole.
        unit: of the divergence.
    """

    records: Sequence[Record]
    recovered: Sequence[Record]
    dense: Cost
    baseline: Score
    chance: Chance | None
    over: frozenset[int]
    measured: Mapping[str, Mapping[str, float]]
    unit: str


def read_finished(folder: StudyFolder) -> FinishedStudy:
    """The study in ``folder``, without opening it for a search.

    Raises:
        StudyError: the storage is missing or damaged, or has no finished plan, or nothing says what the dense model scored.
        ArtifactError: a recovered model's ``plan.json`` is damaged.
    """
    study = open_storage(folder)
    records = merged(r for r in map(Record.of, study.get_trials(deepcopy=False)) if r)
    about = study.user_attrs.get(DENSE) or _about_dense(folder, records)
    if not about or not any(r.complete for r in records):
        rule, remedy = "the study must have a front", "Run lrsearch search first."
        raise StudyError(rule, value=f"{len(records)} plans", place=str(folder.path), remedy=remedy)
    over = over_budget(records, folder)
    recovered = recovered_records(folder, [r for r in records if r.number not in over])
    dense, baseline = Cost.from_dict(about["dense"]), Score.of(about["baseline"])
    chance = Chance.of(about["chance"]) if about.get("chance") else None
    return FinishedStudy(records, recovered, dense, baseline, chance, frozenset(over), measured_whole(folder), unit_of(folder, about))


def unit_of(folder: StudyFolder, about: Mapping[str, Any]) -> str:
    """Of the divergence; older studies did not keep it with the trials, nor the oldest their task, which was classification."""
    if "unit" in about:
        return str(about["unit"])
    task = ((stored_identity(folder) or {}).get("inputs") or {}).get("task") or {"name": Classification.name}
    return TASKS[task["name"]].unit if task["name"] in TASKS else ""


def _about_dense(folder: StudyFolder, records: Sequence[Record]) -> Mapping[str, Any] | None:
    """What saved models say of the dense one: older studies did not keep it with the trials."""
    for record in records:
        with suppress(ArtifactError):
            return artifact.read_plan(folder.path / record.model)[1]
    return None


def recovered_records(folder: StudyFolder, records: Sequence[Record]) -> list[Record]:
    """A record of each recovered model in ``folder``: that of its trial, with the new score behind the others.

    Raises:
        ArtifactError: a recovered model's ``plan.json`` is damaged.
    """
    found = []
    for name in folder.recovered_models():
        plan, about = artifact.read_plan(folder.path / name)
        if trial := next((r for r in records if r.number == about["recovered"]["trial"] and r.plan == plan), None):
            scores = (*trial.scores, Score.of(about["score"]))
            found.append(replace(trial, scores=scores, complete=True, model=name, untrained=False))
    return found
