"""How much a rung's score says of a long finetune: the same plans at every rung, and at length."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lrsearch.errors import StudyError
from lrsearch.search.records import SEARCH, Record
from lrsearch.spec.atomic import read_json
from lrsearch.spec.config import FinetuneConfig
from lrsearch.spec.cost import Cost
from lrsearch.spec.progress import Progress
from lrsearch.spec.score import Score
from lrsearch.study.loop import Search
from lrsearch.study.parts import training_part
from lrsearch.task.data import Examples
from lrsearch.train.teacher import Teacher

LEAST = 4  # plans, for a rank correlation to mean anything


def chosen_plans(records: Sequence[Record], cost: str, plans: int) -> list[Record]:
    """``plans`` different plans, evenly chosen along ``cost``: the search's own; the controls' where those are too few.

    Raises:
        StudyError: there are fewer than 4.
    """
    ranked = sorted((r for r in records if r.plan.layers), key=lambda r: (r.source != SEARCH, r.number))
    different: dict[str, Record] = {}
    for record in ranked:
        different.setdefault(record.plan.fingerprint, record)
    pool = list(different.values())[: max(plans, sum(r.source == SEARCH for r in different.values()))]
    if len(pool) < LEAST:
        raise StudyError(f"needs {LEAST} finished plans", value=len(pool), place="the study", remedy="Search on.")
    along = sorted(pool, key=lambda r: (getattr(r.cost, cost), r.number))
    return [along[round(i)] for i in np.linspace(0, len(along) - 1, min(plans, len(along)))]


class Comparison:
    """Scores the same plans at every rung and after a long finetune; what is finished is kept in the study folder.

    Args:
        search: the study, opened.
        train: all the training data; the long finetune reads what it needs.
        long: steps of the long finetune, which otherwise is as the study says, in one cycle.
        progress: told of every plan.
    """

    def __init__(self, search: Search, train: Examples, long: int, progress: Progress) -> None:
        self.search, self.progress, self.folder = search, progress, search.folder
        proxy = search.evaluator.config
        self.config = FinetuneConfig(**{**proxy.finetune.model_dump(), "steps": long, "rungs": 1})
        used = training_part(train, proxy.model_copy(update={"finetune": self.config}))
        self.teacher = search.evaluator.taught(used, self.config)

    def run(self, plans: int) -> list[dict[str, Any]]:
        """A row per plan: ``trial``, ``cost``, ``rungs`` (scores, rung 0 first) and ``long`` (a score)."""
        chosen = chosen_plans(self.search.records, self.search.objectives[1], plans)
        known = self._read()
        due = [r for r in chosen if str(r.number) not in known]
        self.progress.stage("Finetuning", len(chosen), len(chosen) - len(due))
        for record in due:
            rungs, (long,) = self._rungs(record), self._trained(record, self.config, self.teacher)
            known[str(record.number)] = {"cost": record.cost.to_dict(), "rungs": [s.to_dict() for s in rungs], "long": long.to_dict()}
            self._write(known)
            self.progress.advance()
        return [{"trial": r.number, **known[str(r.number)]} for r in chosen]

    def _rungs(self, record: Record) -> list[Score]:
        """The study's scores; those of rungs that the plan did not reach are made up for."""
        evaluator = self.search.evaluator
        config, teacher = evaluator.config.finetune, evaluator.teacher
        if teacher is None or len(record.scores) == len(config.ends) + 1:
            return list(record.scores)
        return [record.scores[0], *self._trained(record, config, teacher)]

    def _trained(self, record: Record, config: FinetuneConfig, teacher: Teacher) -> list[Score]:
        """The score at each of the ends of ``config``."""
        evaluator, place = self.search.evaluator, f"trial {record.number}"
        fits = self.search.profile.fits(record.plan, evaluator.device)
        corrected = evaluator.score(fits, place).score.batchnorm
        own = evaluator.teacher is not None
        self.search.recipe.settle(fits, *(() if own else (teacher, config)))
        training = evaluator.training(fits, None, teacher, config)
        return [evaluator.trained(training, end, place, corrected).score for end in config.ends]

    def _read(self) -> dict[str, Any]:
        """trial → row, of this long finetune; rows that are not as they were written are made again."""
        rows = self._all().get(str(self.config.steps))
        return {n: row for n, row in rows.items() if _is_row(row)} if isinstance(rows, dict) else {}

    def _all(self) -> dict[str, Any]:
        """What is kept, of every length; nothing where the file is damaged."""
        return read_json(self.folder.fidelity)

    def _write(self, known: dict[str, Any]) -> None:
        self.folder.save(self.folder.fidelity, {**self._all(), str(self.config.steps): known})


def _is_row(row: Any) -> bool:
    try:
        Cost.from_dict(row["cost"])
        return bool([Score.of(score) for score in (*row["rungs"], row["long"])])
    except (KeyError, TypeError):
        return False
