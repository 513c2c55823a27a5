"""A study: controls first, then the sampler's plans and, from rung to rung, the best of them; each stored before the next.

Several processes may run the same study: each decides, stores and removes in its turn, and evaluates outside of it.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial
from sqlalchemy.exc import SQLAlchemyError

from lrsearch.errors import LrsearchError, ScoreError
from lrsearch.profile.sweep import Profile
from lrsearch.search.halving import Halving
from lrsearch.search.proposals import Proposals
from lrsearch.search.records import CONTINUES, Record
from lrsearch.spec.config import SearchConfig
from lrsearch.spec.plan import Plan
from lrsearch.spec.progress import Progress
from lrsearch.study.evaluator import Evaluator
from lrsearch.study.finetune_checkpoints import FinetuneCheckpoints
from lrsearch.study.finetune_recipe import FinetuneRecipe
from lrsearch.study.front_latency import FrontLatency
from lrsearch.study.front_models import FrontModels
from lrsearch.study.latency import FrontTimer, Timed
from lrsearch.study.losses import Losses
from lrsearch.study.pace import Pace
from lrsearch.study.scheduler import Scheduler
from lrsearch.study.status import describe, in_one_line, shown
from lrsearch.study.study_folder import StudyFolder
from lrsearch.study.trial_runner import TrialRunner, twin
from lrsearch.study.trials import TrialStore
from lrsearch.study.workers import Workers

log = logging.getLogger("lrsearch")
Callback = Callable[[Study, FrozenTrial], None]
MAX_FAILURES = 5  # trials in a row; then the study ends
PAUSE = 0.5  # seconds until a worker without work looks again
TIDY = 30.0  # seconds from one look at what is not needed any more to the next, where others on other machines wait meanwhile


@dataclass
class Search:
    """One study's machinery; :meth:`run` may be called again and goes on where it stopped.

    Args:
        folder: the study folder.
        objectives: ``divergence`` or ``metric``, then costs.
        config: how many plans, which sampler.
        proposals: decodes trials into plans.
        profile: has the fits of every plan.
        evaluator: scores them.
        about: kept in every saved model's ``plan.json``.
        progress: told of every step.
        workers: who searches too.
        losses: of each example, as ``proposals`` reads them.
        timed: the latencies, if the study has them.
        front_timer: if it has none: what measures some plans whole, once at the end.
        name: of a new study in its storage.
        callbacks: called with the Optuna study and the finished trial, after each.
    """

    folder: StudyFolder
    objectives: tuple[str, ...]
    config: SearchConfig
    proposals: Proposals
    profile: Profile
    evaluator: Evaluator
    about: Mapping[str, Any]
    progress: Progress
    workers: Workers
    losses: Losses
    timed: Timed | None = None
    front_timer: Callable[[Sequence[Plan]], FrontTimer] | None = None
    name: str = "study"
    callbacks: Sequence[Callback] = ()

    def __post_init__(self) -> None:
        self.trials = TrialStore(self.folder, self.objectives, self.proposals, self.workers, self.name, self.losses)
        self.checkpoints = FinetuneCheckpoints(self.folder)
        spans = {m: (low * dense, high * dense) for m, (low, high) in self.proposals.targets.items() for dense in [self.proposals.dense[m]]}
        ends = self.evaluator.config.finetune.ends
        self.halving = Halving.of(self.objectives, spans, self.config.control_points, ends, self.config.reduction, self.losses.noise)
        self.scheduler, self._told = Scheduler(self.folder, self.trials, self.halving, self.config.trials), 0
        self._tidied, proxy, evaluator = -float("inf"), self.evaluator.config, self.evaluator
        scored = sum(len(part) for part in (evaluator.scoring, evaluator.fit, evaluator.held_out))
        self._pace = Pace.of(self.config.reduction, ends, proxy.finetune.batch, scored)
        self.recipe = FinetuneRecipe(self.evaluator, self.trials, self.workers, self.progress)
        self._runner = TrialRunner(
            self.folder, self.objectives, self.proposals, self.profile, self.evaluator, self.halving, self.recipe, self.losses,
            self.checkpoints, self.progress,
        )
        merged = self.timed.merged if self.timed else None
        self._models = FrontModels(self.folder, self.profile, self.evaluator, self.halving, self.recipe, self.about, self.progress, merged)
        self._latency = FrontLatency(self.folder, self.evaluator, self.progress, self.timed, self.front_timer)

    @property
    def records(self) -> list[Record]:
        """All plans with what they scored, also those of former runs."""
        return self.trials.records()

    def run(self) -> list[Record]:
        """Evaluate the controls, then until ``config.trials`` plans of the search are finished and none is due for a further rung.

        Then, with latencies of this machine, measure the front whole, and go on so for as long as some of it is over the budget.

        Returns:
            All records, also those of former runs.

        Raises:
            LrsearchError: five trials in a row failed.
        """
        try:
            return self._run()
        except BaseException as error:
            self.trials.hand_back(interrupted=not isinstance(error, Exception))
            raise
        finally:
            self.trials.close()

    def _run(self) -> list[Record]:
        for note in self.workers.turn.do(self.trials.queue_controls):
            self.progress.note(note)
        started = time.monotonic()
        self._search(started)
        while self._latency.verifies and self._over_budget():
            self._search(started)  # what stood behind the plans that left takes their places, on the front and at the rungs
        self.workers.turn.do(self._conclude)
        return self.records

    def _conclude(self) -> None:
        """What is left to do where nothing is left to search."""
        if self.scheduler.done:
            self._latency.survey(self._front)
            self.checkpoints.keep(set())
        elif self.config.timeout:
            self.progress.note(f"stopped by the timeout of {self.config.timeout:g} s")

    def _search(self, started: float) -> None:
        """Evaluate what is queued or due, until nothing is or the time is up."""
        self._told, to_come = self.workers.turn.do(lambda: (len(self.records), len(self.trials.running()) + self.scheduler.left()))
        self.progress.stage("Searching", self._told + to_come, self._told)
        failures, began, every = 0, time.monotonic(), self._told + to_come
        while trial := self._claim(started):
            try:
                self._step(trial)
                failures = 0
            except _Failed as failed:
                failures += failed.final
                if failures == MAX_FAILURES:
                    self.progress.note(f"trial {trial.number} was to be {shown(failed.plan)}")
                    raise failed.error from failed.error.__cause__
            self.progress.expect(self._pace.share(self.records, max(every - len(self.records), 0), time.monotonic() - began))
            if not self._advance():
                self.progress.show(self._best())  # a further rung is no step, as nobody knows how many there will be
        self.progress.expect(1.0)
        self._advance()
        self.workers.turn.do(lambda: self._make_whole(self._late(started)))

    def _claim(self, started: float) -> Trial | None:
        """What to do next; None if nothing is left or the time is up. Waits for what other workers are at, as that may lead to more."""
        while not self._late(started):
            trial, waits = self.workers.turn.do(self._asked)
            if not waits:
                return trial
            self._advance()
            time.sleep(PAUSE)
        return None

    def _asked(self) -> tuple[Trial | None, bool]:
        """What is to be done now, and whether there is nothing, but others are busy. What is not needed any more is removed before."""
        if not self.workers.far or time.monotonic() > self._tidied + TIDY:
            self._latency.hear()
            self._tidy()
            self._tidied = time.monotonic()
        trial = self.scheduler.ask()
        return trial, trial is None and self.scheduler.busy

    def _over_budget(self) -> bool:
        """Whether some of the front, measured whole, is over the latency budget, and has left it.

        While others are busy it is neither measured well nor whole: the last does it.
        """
        return self.workers.turn.do(self._found_over_budget)

    def _found_over_budget(self) -> bool:
        """The same, in a turn."""
        if self.scheduler.busy:
            return False
        members = self._front
        self._restore()
        return self._latency.over_budget(members)

    def _make_whole(self, late: bool) -> None:
        """See :meth:`_restore` and :meth:`_tidy`."""
        self._restore(late)
        self._tidy()

    def _restore(self, late: bool = False) -> None:
        """Make the models of the front that are not on disk again, unless others are busy, whose last does it."""
        if not self.scheduler.busy:
            self._models.restore(self._front, late)

    def _late(self, started: float) -> bool:
        return self.config.timeout is not None and time.monotonic() - started > self.config.timeout

    def _step(self, trial: Trial) -> None:
        """One trial: a plan's first, or a further rung.

        Raises:
            _Failed: it has no score, which is stored and told.
        """
        plan, began = self._plan(trial), time.monotonic()
        try:
            self.workers.turn.patiently(lambda: self.trials.begin(trial, plan))
            record = self._evaluated(trial, plan)
        except (OSError, SQLAlchemyError, StorageInternalError):  # of the disk or the database, which would fail every plan
            self.trials.interrupt(trial)
            raise
        except Exception as error:
            raise self._failed(trial, plan, error) from error
        except BaseException:
            self.trials.interrupt(trial)
            raise
        self.workers.turn.patiently(lambda: self.trials.note(trial, record))
        if not self.workers.turn.do(lambda: self._finished(trial, record)):
            return
        self._pace.note(record, took := time.monotonic() - began)
        log.info("%s, %.1f s", in_one_line(trial.number, record, self.objectives, self.evaluator.task.unit), took)
        if self.callbacks:
            study = self.trials.study
            frozen = self.workers.turn.patiently(lambda: study.get_trials(deepcopy=False)[trial.number])
            for callback in self.callbacks:
                callback(study, frozen)

    def _finished(self, trial: Trial, record: Record) -> bool:
        """Store what ``trial`` came to; False where it is another worker's by now."""
        if not self.trials.finish(trial, twin(record.number, record.source, record.plan, self.records) or record):
            self.progress.note(f"trial {trial.number} was given to another worker, as this one was not heard of; its score is dropped")
            return False
        return True

    def _evaluated(self, trial: Trial, plan: Plan) -> Record:
        """What ``trial`` comes to; its model is saved where it belongs to the front.

        Raises:
            ScoreError: an equal plan was given up.
        """
        if CONTINUES not in trial.user_attrs and (reason := self.trials.given_up(plan)):
            raise ScoreError("its plan must not have been given up", value=reason, place=f"trial {trial.number}", remedy="Mend that first.")
        record, scored = self._runner.run(trial, plan, self.records)
        others = (r for r in self.records if r.number != record.number)
        if scored and record.complete and record in self.scheduler.members([*others, record]):
            self._models.save(record, scored)
        return record

    def _failed(self, trial: Trial, plan: Plan, error: Exception) -> "_Failed":
        """Store and tell that ``trial`` ended in ``error``; a score that is no number would be none again, all else is tried again."""
        told = error if isinstance(error, LrsearchError) else ScoreError(
            "a trial must not end in an error", value=f"{type(error).__name__}: {error}", place=f"trial {trial.number}",
            remedy="Mend the model or the metric; --debug shows where it failed.",
        )
        told.__cause__ = told.__cause__ if told is error else error
        final = self.workers.turn.do(lambda: self.trials.fail(trial, str(told), retry=not isinstance(error, ScoreError)))
        text = str(told) if str(told).startswith("trial ") else f"trial {trial.number}: {told}"
        self.progress.note(text if final else f"{text} Its plan is tried again.")
        return _Failed(told, plan, final)

    def _plan(self, trial: Trial) -> Plan:
        """What ``trial`` is about."""
        if CONTINUES in trial.user_attrs:
            return next(r.plan for r in self.records if r.number == trial.user_attrs[CONTINUES])
        plan = self.proposals.plan_of(trial)
        assert plan is not None, "budgets are checked before a study starts"
        return plan

    def _advance(self) -> bool:
        """Tell of the plans that are new, also those of other workers; returns whether there are any."""
        found = len(self.records)
        for _ in range(found - self._told):
            self.progress.advance(self._best())
        new, self._told = found > self._told, found
        return new

    def _tidy(self) -> None:
        """Remove the saved models that are not on the front, and the finetunes of plans that are finished or cannot go on.

        What other workers are at stays as it is, and so does what the search did not make.
        """
        records, busy = self.records, self.trials.under_way()
        self._models.tidy(self._front, busy)
        going = {r.number for r in records if r.rung and not r.complete and r.twin is None} - self.trials.stuck()
        self.checkpoints.keep(going | busy)

    @property
    def _front(self) -> list[Record]:
        return self.scheduler.members(self.records)

    def _best(self) -> str:
        known = self.evaluator.baseline, self.evaluator.chance
        return describe(self.records, self.objectives, self.proposals.dense, self.halving.last, *known, self.evaluator.task.unit)


class _Failed(Exception):
    """A trial has no score.

    Attributes:
        error: why, in one line.
        plan: what was tried.
        final: it is not tried again.
    """

    def __init__(self, error: LrsearchError, plan: Plan, final: bool) -> None:
        super().__init__(str(error))
        self.error, self.plan, self.final = error, plan, final
