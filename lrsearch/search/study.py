"""A study: controls first, then the sampler's plans, each scored and stored before the next."""

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from lrsearch.compress import artifact
from lrsearch.errors import ScoreError, StudyError
from lrsearch.profile.sweep import Profile
from lrsearch.proxy.evaluator import Evaluator
from lrsearch.search.latency import FRONT, Timed
from lrsearch.search.progress import Progress
from lrsearch.search.proposals import Proposals
from lrsearch.search.records import SEARCH, Record, front, values
from lrsearch.search.recovered import RECOVERED
from lrsearch.search.sampler import build_sampler
from lrsearch.spec.config import SearchConfig
from lrsearch.spec.front import non_dominated
from lrsearch.spec.plan import Plan

MAX_FAILURES = 5


@dataclass
class Search:
    """One study's machinery; :meth:`run` may be called again and goes on where it stopped.

    Args:
        folder: the study folder.
        objectives: ``kl`` or ``metric``, then costs.
        config: how many trials, which sampler.
        proposals: decodes trials into plans.
        profile: has the fits of every plan.
        evaluator: scores them.
        about: kept in every saved model's ``plan.json``.
        progress: told of every step.
        timed: the latencies, if the study has them.
    """

    folder: Path
    objectives: tuple[str, ...]
    config: SearchConfig
    proposals: Proposals
    profile: Profile
    evaluator: Evaluator
    about: Mapping[str, Any]
    progress: Progress
    timed: Timed | None = None

    def __post_init__(self) -> None:
        self.study = self._open()
        self.records = [r for r in map(Record.of, self._trials()) if r]

    def _open(self) -> Study:
        """The study in ``study.db``; trials that a killed run left unfinished are queued again.

        Raises:
            StudyError: the file is damaged.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        first = StudyDirection.MINIMIZE if self.objectives[0] == "kl" else StudyDirection.MAXIMIZE
        sampler = build_sampler(self.config.sampler, self.proposals.space, self.proposals.observe, self.config.seed)
        path = self.folder / "study.db"
        try:
            study = optuna.create_study(
                storage=f"sqlite:///{path}", study_name="study", load_if_exists=True, sampler=sampler,
                directions=[first, *[StudyDirection.MINIMIZE] * (len(self.objectives) - 1)],
            )
        except SQLAlchemyError as error:
            raise StudyError(
                "must be an Optuna storage", value=str(error).splitlines()[0], place=str(path), remedy="Give another --out.",
            ) from error
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            study.tell(trial.number, state=TrialState.FAIL)
            if trial.params.keys() == self.proposals.space.keys() and "source" not in trial.user_attrs:
                study.enqueue_trial(trial.params)
        return study

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=states or None)

    def run(self) -> list[Record]:
        """Evaluate the controls, then until ``config.trials`` plans of the search are finished.

        Returns:
            All records, also those of former runs.

        Raises:
            ScoreError: five trials in a row failed.
        """
        self._enqueue_controls()
        self.progress.stage("Searching", len(self.records) + self._left(), len(self.records))
        started, failures = time.monotonic(), 0
        while self._left():
            if self.config.timeout and time.monotonic() - started > self.config.timeout:
                self.progress.note(f"stopped by the timeout of {self.config.timeout:g} s")
                break
            try:
                self._evaluate(self.study.ask(self.proposals.space))
                failures = 0
            except ScoreError as error:
                self.progress.note(str(error))
                failures += 1
                if failures == MAX_FAILURES:
                    raise
            self.progress.advance(self._best())
        self._prune_models()
        if self.timed and self.timed.here:
            members = front(self.records, self.objectives)
            self.timed.time_front({r.number: r.plan for r in members}, self.folder / FRONT, self.progress)
        return self.records

    def _left(self) -> int:
        """Trials still to run: what is queued, and what the search lacks beyond that."""
        queued = [t.user_attrs.get("source", SEARCH) for t in self._trials(TrialState.WAITING)]
        searched = sum(r.source == SEARCH for r in self.records)
        return len(queued) + max(0, self.config.trials - searched - queued.count(SEARCH))

    def _enqueue_controls(self) -> None:
        """Queue the dense model and the controls that are neither finished nor queued."""
        settled = [t for t in self._trials() if t.state != TrialState.FAIL or "reason" in t.user_attrs]
        seen = [(t.user_attrs.get("source"), t.params or t.system_attrs.get("fixed_params")) for t in settled]
        for source, parameters in self.proposals.controls():
            if (source, parameters) in seen:
                continue
            if self.proposals.plan(source, parameters) is None:
                targets = ", ".join(f"{k.removeprefix('target/')} {v:.1%}" for k, v in parameters.items() if k.startswith("target/"))
                self.progress.note(f"{source} has no plan at {targets}")
            else:
                self.study.enqueue_trial(parameters, user_attrs={"source": source})

    def _evaluate(self, trial: Trial) -> None:
        source = trial.user_attrs.get("source", SEARCH)
        plan = self.proposals.plan(source, trial.params)
        assert plan is not None, "budgets are checked before a study starts"
        try:
            record = self._copied(trial.number, source, plan) or self._scored(trial.number, source, plan)
        except ScoreError as error:
            trial.set_user_attr("reason", str(error))
            self.study.tell(trial, state=TrialState.FAIL)
            raise
        for key, value in record.attributes().items():
            trial.set_user_attr(key, value)
        if record.complete:
            first, *costs = values(record, self.objectives)
            self.study.tell(trial, [first if self.objectives[0] == "kl" else -first, *costs])
        else:
            self.study.tell(trial, state=TrialState.PRUNED)
        self.records.append(record)
        self._prune_models()

    def _copied(self, number: int, source: str, plan: Plan) -> Record | None:
        """The record of an earlier trial that had the same plan: nothing finished is done again."""
        twin = next((r for r in self.records if r.plan == plan), None)
        return twin and Record(number, source, plan, twin.cost, twin.scores, twin.complete, twin.model)

    def _scored(self, number: int, source: str, plan: Plan) -> Record:
        cost, place = self.proposals.decoder.costs(plan), f"trial {number}"
        fits = self.profile.fits(plan, self.evaluator.device)
        scores = (self.evaluator.score(fits, place),)
        steps = self.evaluator.config.finetune.steps
        record = Record(number, source, plan, cost, scores, not steps, f"models/{number:04d}")
        if steps and self._promoted(record):
            final, fits = self.evaluator.finetuned(fits, place)
            record = Record(number, source, plan, cost, (*scores, final), True, record.model)
        if record in front([*self.records, record], self.objectives):
            model = self.evaluator.compressed(self.profile.layers, plan, fits)
            about = {**self.about, "cost": cost.to_dict(), "score": record.score.to_dict()}
            about |= {"merged": self.timed.merged(plan)} if self.timed else {}
            artifact.save(model, plan, self.folder / record.model, about, self.evaluator.storage)
        return record

    def _promoted(self, record: Record) -> bool:
        """Finetune the controls, and what no earlier plan dominates before finetuning."""
        points = [(r.scores[0].kl, *values(r, self.objectives)[1:]) for r in (*self.records, record)]
        return record.source != SEARCH or bool(non_dominated(points)[-1])

    def _prune_models(self) -> None:
        """Remove the saved models that are not on the front."""
        keep = {r.model for r in front(self.records, self.objectives)}
        for path in (self.folder / "models").glob("*"):
            if f"models/{path.name}" not in keep and not path.name.startswith(RECOVERED):
                shutil.rmtree(path, ignore_errors=True)

    def _best(self) -> str:
        return describe(front(self.records, self.objectives), self.objectives, self.proposals.dense)


def describe(members: Sequence[Record], objectives: Sequence[str], dense: Mapping[str, float]) -> str:
    """The front in one phrase: its size and its smallest member."""
    if not members:
        return ""
    smallest, cost = members[-1], objectives[1]
    ratio = getattr(smallest.cost, cost) / dense[cost]
    return f"front of {len(members)}, to {cost} {ratio:.1%} at KL {smallest.score.kl:.3f}"
