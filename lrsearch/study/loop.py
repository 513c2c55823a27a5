"""A study: controls first, then the sampler's plans and, from rung to rung, the best of them; each stored before the next.

Several processes may run the same study: each decides, stores and removes in its turn, and evaluates outside of it.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial, Trial
from sqlalchemy.exc import SQLAlchemyError

from lrsearch.compress import artifact
from lrsearch.compress.fit import Decomposition
from lrsearch.errors import ConfigError, LrsearchError, ScoreError
from lrsearch.profile.sweep import Profile
from lrsearch.search.halving import Halving
from lrsearch.search.proposals import Proposals
from lrsearch.search.records import CONTINUES, SEARCH, Record, front, reached, values
from lrsearch.spec.config import SearchConfig
from lrsearch.spec.plan import Plan
from lrsearch.spec.progress import Progress
from lrsearch.spec.score import NOISE, Chance, Score
from lrsearch.study.evaluator import Evaluator, Scored
from lrsearch.study.finetune_checkpoints import FinetuneCheckpoints
from lrsearch.study.latency import Timed, Untabled, behind_int8
from lrsearch.study.losses import Losses
from lrsearch.study.scheduler import Scheduler
from lrsearch.study.study_folder import StudyFolder
from lrsearch.study.trials import RUNG, TrialStore
from lrsearch.study.workers import Workers

log = logging.getLogger("lrsearch")
Callback = Callable[[Study, FrozenTrial], None]
MAX_FAILURES = 5  # trials in a row; then the study ends
ROUNDING = 1e-3  # of a loss; what is kept of each example has 16 bits
ROUNDING_FLOOR = 1e-6  # nats, and share of examples: scores are float32
PAUSE = 0.5  # seconds until a worker without work looks again


@dataclass
class Search:
    """One study's machinery; :meth:`run` may be called again and goes on where it stopped.

    Args:
        folder: the study folder.
        objectives: ``kl`` or ``metric``, then costs.
        config: how many plans, which sampler.
        proposals: decodes trials into plans.
        profile: has the fits of every plan.
        evaluator: scores them.
        about: kept in every saved model's ``plan.json``.
        progress: told of every step.
        workers: who searches too.
        timed: the latencies, if the study has them.
        paced: if it has none: what measures some plans whole, once at the end.
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
    timed: Timed | None = None
    paced: Callable[[Sequence[Plan]], Untabled] | None = None
    name: str = "study"
    callbacks: Sequence[Callback] = ()

    def __post_init__(self) -> None:
        self.trials = TrialStore(self.folder, self.objectives, self.proposals, self.workers, self.name)
        self.losses, self.checkpoints = Losses(self.folder), FinetuneCheckpoints(self.folder)
        spans = {m: (low * dense, high * dense) for m, (low, high) in self.proposals.targets.items() for dense in [self.proposals.dense[m]]}
        ends = self.evaluator.config.finetune.ends
        self.halving = Halving.of(self.objectives, spans, self.config.control_points, ends, self.config.reduction, self.losses.noise)
        self.scheduler, self._told = Scheduler(self.folder, self.trials, self.halving, self.config.trials), 0

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
        finally:
            self.trials.close()

    def _run(self) -> list[Record]:
        with self.workers.turn:
            for note in self.trials.queue_controls():
                self.progress.note(note)
        started = time.monotonic()
        self._search(started)
        while self.timed and self.timed.here and self._over_when_measured(self.timed):
            self._search(started)  # what stood behind the plans that left takes their places, on the front and at the rungs
        with self.workers.turn:
            self._pace()
            if self.scheduler.done:
                self.checkpoints.keep(set())
            elif self.config.timeout:
                self.progress.note(f"stopped by the timeout of {self.config.timeout:g} s")
        return self.records

    def _search(self, started: float) -> None:
        """Evaluate what is queued or due, until nothing is or the time is up."""
        with self.workers.turn:
            self._told, failures = len(self.records), 0
            to_come = len(self.trials.running()) + self.scheduler.left()
            self.progress.stage("Searching", self._told + to_come, self._told)
        while trial := self._claim(started):
            try:
                self._step(trial)
                failures = 0
            except _Failed as failed:
                failures += failed.final
                if failures == MAX_FAILURES:
                    self.progress.note(f"trial {trial.number} was to be {shown(failed.plan)}")
                    raise failed.error from failed.error.__cause__
            if not self._advance():
                self.progress.show(self._best())  # a further rung is no step, as nobody knows how many there will be
        self._advance()
        with self.workers.turn:
            self._restore(started)
            self._tidy()

    def _claim(self, started: float) -> Trial | None:
        """What to do next; None if nothing is left or the time is up. Waits for what other workers are at, as that may lead to more."""
        while not self._late(started):
            with self.workers.turn:
                trial = self.scheduler.ask()
                if trial or not self.scheduler.busy:
                    return trial
            self._advance()
            time.sleep(PAUSE)
        return None

    def _over_when_measured(self, timed: Timed) -> bool:
        """Measure the front whole, and return whether some of it is over the latency budget, and has left it.

        While others are busy it is neither measured well nor whole: the last does it.
        """
        with self.workers.turn:
            if self.scheduler.busy:
                return False
            members = self.scheduler.members(self.records)
            self._restore()
            timed.time_dense_int8(self.folder, self.evaluator.dense_in_int8, self.progress)
            refused = timed.time_front({r.number: r.plan for r in members}, self.folder, self.progress)
            if not refused and (told := behind_int8(members, self.folder)):
                self.progress.note(told)
            return refused

    def _pace(self) -> None:
        """Of a finished study without latencies, measure some of the front whole, and tell what is slower than the dense model."""
        members = self.scheduler.members(self.records) if self.paced and self.scheduler.done else []
        plans = {r.number: r.plan for r in members}
        if not plans or self.scheduler.busy:
            return
        if all(choice.executed.untouched for plan in plans.values() for choice in plan.layers.values()):
            self.progress.note("the front takes as long as the dense model: a runtime multiplies by zeros as by other values")
            return
        try:
            assert self.paced is not None
            timed = self.paced(list(plans.values()))
            timed.time_front(plans, self.folder, self.progress)
            if told := timed.slower(plans, self.folder):
                self.progress.note(told)
        except ConfigError as error:  # no runtime is installed
            log.info("the front's latency was not measured: %s", error)
        except Exception as error:  # of a front that is as good without
            self.progress.note(f"the front's latency was not measured: {' '.join(str(error).split()) or type(error).__name__}")

    def _restore(self, started: float | None = None) -> None:
        """Make the models of the front that are not on disk again, unless others are busy, whose last does it.

        Args:
            started: when the search began; what there is no time for is told.
        """
        gone = {r.model: r for r in self.scheduler.members(self.records) if not artifact.whole(self.folder.path / r.model)}
        if not gone or self.scheduler.busy:
            return
        if started is not None and self._late(started):
            self.progress.note(f"{', '.join(gone)} are gone or damaged, and there was no time to make them again: search on")
            return
        for record in gone.values():
            try:
                again = self._remade(record)
                artifact.remove(self.folder.path / record.model)  # what is left of it
                self._save(record, again)
            except LrsearchError as error:
                self.progress.note(f"{record.model} is gone and cannot be made again: {error}")

    def _late(self, started: float) -> bool:
        return self.config.timeout is not None and time.monotonic() - started > self.config.timeout

    def _step(self, trial: Trial) -> None:
        """One trial: a plan's first, or a further rung.

        Raises:
            _Failed: it has no score, which is stored and told.
        """
        plan, began = self._plan(trial), time.monotonic()
        try:
            with self.workers.turn:
                self.trials.begin(trial, plan)
            record = self._further(trial) if CONTINUES in trial.user_attrs else self._first(trial, plan)
        except (OSError, SQLAlchemyError):  # of the disk, which would fail every plan
            self.trials.interrupt(trial)
            raise
        except Exception as error:
            raise self._failed(trial, plan, error) from error
        except BaseException:
            self.trials.interrupt(trial)
            raise
        with self.workers.turn:
            self.trials.finish(trial, self._twin(record.number, record.source, record.plan) or record)
            self._tidy()
        log.info("%s, %.1f s", in_one_line(trial.number, record, self.objectives), time.monotonic() - began)
        if self.callbacks:
            study, frozen = self.trials.study, self.trials.study.get_trials(deepcopy=False)[trial.number]
            for callback in self.callbacks:
                callback(study, frozen)

    def _failed(self, trial: Trial, plan: Plan, error: Exception) -> "_Failed":
        """Store and tell that ``trial`` ended in ``error``; a score that is no number would be none again, all else is tried again."""
        told = error if isinstance(error, LrsearchError) else ScoreError(
            "a trial must not end in an error", value=f"{type(error).__name__}: {error}", place=f"trial {trial.number}",
            remedy="Mend the model or the metric; --debug shows where it failed.",
        )
        told.__cause__ = told.__cause__ if told is error else error
        with self.workers.turn:
            final = self.trials.fail(trial, str(told), retry=not isinstance(error, ScoreError))
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

    def _first(self, trial: Trial, plan: Plan) -> Record:
        """Rung 0, or what an earlier trial of the same plan came to: nothing finished is done again."""
        source = trial.user_attrs.get("source", SEARCH)
        if twin := self._twin(trial.number, source, plan):
            return twin
        scored = self.evaluator.score(self.profile.fits(plan, self.evaluator.device), f"trial {trial.number}")
        cost = self.proposals.decoder.costs(plan)
        record = Record(trial.number, source, plan, cost, (scored.score,), not self.halving.last, self.folder.model_name(trial.number))
        return self._kept(record, scored)

    def _twin(self, number: int, source: str, plan: Plan) -> Record | None:
        """What another trial, of this or another worker, came to with the same plan."""
        other = next((r for r in self.records if r.plan == plan and r.twin is None and r.number != number), None)
        return other and replace(other, number=number, source=source, twin=other.number)

    def _further(self, trial: Trial) -> Record:
        """The next rung of a plan, from where its finetune paused."""
        number, rung = trial.user_attrs[CONTINUES], trial.user_attrs[RUNG]
        before = next(r for r in self.records if r.number == number)
        fits = self.profile.fits(before.plan, self.evaluator.device)
        self.settle_learning_rate(fits)
        training = self.evaluator.training(fits, self.checkpoints.load(number))
        place, corrected = f"trial {number}, rung {rung}", before.scores[0].batchnorm
        scored = self.evaluator.trained(training, self.halving.ends[rung - 1], place, corrected)
        last = rung == self.halving.last
        if not last:
            self.checkpoints.save(number, training.state_dict())
        return self._kept(replace(before, scores=(*before.scores, scored.score), complete=last), scored)

    def settle_learning_rate(self, fits: Mapping[str, Decomposition]) -> None:
        """Find the learning rate of the study's finetunes, with the first candidate that has one; it is kept with the trials."""
        if self.evaluator.learning_rate is None:
            self.evaluator.learning_rate = self.trials.learning_rate()
        if self.evaluator.learning_rate is None and fits:
            found = self.evaluator.range_test(fits)
            with self.workers.turn:
                self.evaluator.learning_rate = self.trials.learning_rate(found.rate)
            self.progress.note(str(found))

    def _kept(self, record: Record, scored: Scored) -> Record:
        """``record`` as it counts, after keeping what was lost on each example and, if it is on the front, the model that counts."""
        losses = scored.comparison.losses(self.objectives[0])
        if losses is not None:
            self.losses.save(record.number, record.rung, losses)
        record = replace(record, untrained=self._harmed(record))
        if record.complete and record in self.scheduler.members([*(r for r in self.records if r.number != record.number), record]):
            self._save(record, self._remade(record) if record.untrained else scored)
        return record

    def _harmed(self, record: Record) -> bool:
        """Whether the finetune made a plan worse than it was untrained, beyond the noise of the change; says so if it did."""
        (before, *_), (after, *_) = (values(record, self.objectives, rung) for rung in (0, record.rung))
        noise = NOISE * self.losses.error_of_change(record.number, record.rung)
        if after <= before + max(noise, ROUNDING * abs(before)):
            return False
        if record.plan.layers:
            name, sign = ("KL", 1) if self.objectives[0] == "kl" else ("metric", -1)
            change = f"{record.scores[-1].fidelity} finetune steps took its {name} from {sign * before:.3g} to {sign * after:.3g}"
            self.progress.note(f"trial {record.number}: {change}, so it counts as it was before; lower proxy.finetune.learning_rate")
        return True

    def _save(self, record: Record, scored: Scored) -> None:
        """Save the candidate of ``record``; its ``plan.json`` has the score of what is saved."""
        model, plain = self.evaluator.compressed(self.profile.layers, record.plan, scored), self.evaluator.in_float32(scored, record.model)
        about = {**self.about, "cost": record.cost.to_dict(), "score": record.score.to_dict()}
        about |= {"merged": self.timed.merged(record.plan)} if self.timed else {}
        about |= {} if same(scored.score, record.score) else {"score": scored.score.to_dict(), "recorded": record.score.to_dict()}
        about |= {"float32": plain.to_dict()} if plain else {}
        artifact.save(model, record.plan, self.folder.path / record.model, about, self.evaluator.storage)

    def _remade(self, record: Record) -> Scored:
        """A finished plan that was not kept, as it was when it was scored; told where it does not score the same."""
        fits, place = self.profile.fits(record.plan, self.evaluator.device), f"trial {record.number}"
        if record.score.fidelity:
            self.settle_learning_rate(fits)
            training, until = self.evaluator.training(fits), self.halving.ends[record.rung - 1]
            scored = self.evaluator.trained(training, until, place, record.scores[0].batchnorm)
        else:
            scored = self.evaluator.score(fits, place)
        if not same(scored.score, record.score):
            kl, metric = (f"{name} {a:.4g}, not {b:.4g}" for name, a, b in (
                ("KL", scored.score.kl, record.score.kl), ("metric", scored.score.metric, record.score.metric),
            ))
            self.progress.note(f"{place}: made again, its model scores {kl}; {metric}; its plan.json has both")
        return scored

    def _tidy(self) -> None:
        """Remove the saved models that are not on the front, and the finetunes of plans that are finished or cannot go on.

        What other workers are at stays as it is, and so does what the search did not make.
        """
        records, busy = self.records, self.trials.under_way()
        models = {r.model for r in self.scheduler.members(records)} | {self.folder.model_name(number) for number in busy}
        for path in self.folder.searched_models():
            kept = busy if path.name.startswith(".") else self.folder.model_name(int(path.name)) in models
            if not kept:
                artifact.remove(path)
        going = {r.number for r in records if r.rung and not r.complete and r.twin is None} - self.trials.stuck()
        self.checkpoints.keep(going | busy)

    def _best(self) -> str:
        known = self.evaluator.baseline, self.evaluator.chance
        return describe(self.records, self.objectives, self.proposals.dense, self.halving.last, *known)


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


def same(a: Score, b: Score) -> bool:
    """Whether two scores are of the same model, to within the rounding of another order of summation."""
    pairs = ((a.kl, b.kl), *(((a.metric, b.metric),) if a.metric is not None and b.metric is not None else ()))
    return all(math.isclose(x, y, rel_tol=ROUNDING, abs_tol=ROUNDING_FLOOR) for x, y in pairs)


def shown(plan: Plan) -> str:
    """``plan`` in one line."""
    return "; ".join(f"{name} {layer}" for name, layer in plan.layers.items()) or "the dense model"


def in_one_line(number: int, record: Record, objectives: Sequence[str]) -> str:
    """A finished trial for the log: number, source, rung, costs, scores."""
    costs = ", ".join(f"{m} {getattr(record.cost, m):g}" for m in objectives[1:])
    metric = "" if record.score.metric is None else f", metric {record.score.metric:.4f}"
    rung = f", rung {record.rung}" if record.rung else ""
    return f"trial {number}: {record.source}{rung}, {costs}, KL {record.scores[-1].kl:.5f}{metric}"


def describe(
    records: Sequence[Record], objectives: Sequence[str], dense: Mapping[str, float], last: int, baseline: Score, chance: Chance | None,
) -> str:
    """In one phrase: how many plans reached each rung, if there are several, the size of the front and its smallest usable member."""
    rungs = f"rungs {'/'.join(map(str, reached(records)))}, " if last else ""
    if not (members := front(records, objectives)):
        return rungs.rstrip(", ")
    usable, cost = [r for r in members if not r.score.at_chance(chance)], objectives[1]
    if not usable:
        return f"{rungs}front of {len(members)}, none better than chance yet"
    score, ratio = usable[-1].score, getattr(usable[-1].cost, cost) / dense[cost]
    known = score.metric is not None and baseline.metric is not None
    lost = f", {100 * (score.quality - baseline.quality):+.1f} points" if known else ""
    return f"{rungs}front of {len(members)}, to {cost} {ratio:.1%} at KL {score.kl:.3f}{lost}"
