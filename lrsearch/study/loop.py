"""A study: controls first, then the sampler's plans and, from rung to rung, the best of them; each stored before the next.

Several processes may run the same study: each decides, stores and removes in its turn, and evaluates outside of it.
"""

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optuna.trial import Trial

from lrsearch.compress import artifact
from lrsearch.compress.fit import Decomposition
from lrsearch.errors import ScoreError
from lrsearch.profile.sweep import Profile
from lrsearch.search.halving import Halving
from lrsearch.search.proposals import Proposals
from lrsearch.search.records import CONTINUES, SEARCH, Record, front, reached, values
from lrsearch.spec.config import SearchConfig
from lrsearch.spec.plan import Plan
from lrsearch.spec.progress import Progress
from lrsearch.study.evaluator import Evaluator
from lrsearch.study.finetune_checkpoints import Paused
from lrsearch.study.latency import Timed
from lrsearch.study.losses import LOSSES, Losses
from lrsearch.study.recovered import RECOVERED
from lrsearch.study.scheduler import Agenda
from lrsearch.study.trials import RUNG, Ledger
from lrsearch.study.workers import Workers

MAX_FAILURES = 5
NOISE = 2.0  # standard errors
ROUNDING = 1e-3  # of a loss; what is kept of each example has 16 bits
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
    """

    folder: Path
    objectives: tuple[str, ...]
    config: SearchConfig
    proposals: Proposals
    profile: Profile
    evaluator: Evaluator
    about: Mapping[str, Any]
    progress: Progress
    workers: Workers
    timed: Timed | None = None

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.folder, self.objectives, self.proposals, self.workers)
        self.losses, self.paused = Losses(self.folder / LOSSES), Paused(self.folder / "paused")
        spans = {m: (low * dense, high * dense) for m, (low, high) in self.proposals.targets.items() for dense in [self.proposals.dense[m]]}
        ends = self.evaluator.config.finetune.ends
        self.halving = Halving.of(self.objectives, spans, self.config.control_points, ends, self.config.reduction, self.losses.noise)
        self.agenda, self._told = Agenda(self.folder, self.ledger, self.halving, self.config.trials), 0

    @property
    def records(self) -> list[Record]:
        """All plans with what they scored, also those of former runs."""
        return self.ledger.records()

    def run(self) -> list[Record]:
        """Evaluate the controls, then until ``config.trials`` plans of the search are finished and none is due for a further rung.

        Then, with latencies of this machine, measure the front whole, and go on so for as long as some of it is over the budget.

        Returns:
            All records, also those of former runs.

        Raises:
            ScoreError: five trials in a row failed.
        """
        with self.workers.turn:
            for note in self.ledger.queue_controls():
                self.progress.note(note)
        started = time.monotonic()
        self._search(started)
        while self.timed and self.timed.here and self._over_when_measured(self.timed):
            self._search(started)  # what stood behind the plans that left takes their places, on the front and at the rungs
        with self.workers.turn:
            if self.agenda.done:
                self.paused.keep(set())
            elif self.config.timeout:
                self.progress.note(f"stopped by the timeout of {self.config.timeout:g} s")
        return self.records

    def _search(self, started: float) -> None:
        """Evaluate what is queued or due, until nothing is or the time is up."""
        with self.workers.turn:
            self._told, failures = len(self.records), 0
            to_come = len(self.ledger.running()) + self.agenda.left()
            self.progress.stage("Searching", self._told + to_come, self._told)
        while trial := self._claim(started):
            try:
                self._step(trial)
                failures = 0
            except ScoreError as error:
                self.progress.note(str(error))
                failures += 1
                if failures == MAX_FAILURES:
                    raise
            if not self._advance():
                self.progress.show(self._best())  # a further rung is no step, as nobody knows how many there will be
        self._advance()
        with self.workers.turn:
            self._tidy()

    def _claim(self, started: float) -> Trial | None:
        """What to do next; None if nothing is left or the time is up. Waits for what other workers are at, as that may lead to more."""
        while self.config.timeout is None or time.monotonic() - started <= self.config.timeout:
            with self.workers.turn:
                trial = self.agenda.ask()
                if trial or not self.agenda.busy:
                    return trial
            self._advance()
            time.sleep(PAUSE)
        return None

    def _over_when_measured(self, timed: Timed) -> bool:
        """Measure the front whole, and return whether some of it is over the latency budget, and has left it.

        While others are busy it is neither measured well nor whole: the last does it.
        """
        with self.workers.turn:
            if self.agenda.busy:
                return False
            members = self.agenda.members(self.records)
            for record in members:
                if not (self.folder / record.model).exists():
                    self._save(record, self._remade(record))
            return timed.time_front({r.number: r.plan for r in members}, self.folder, self.progress)

    def _step(self, trial: Trial) -> None:
        """One trial: a plan's first, or a further rung."""
        try:
            record = self._further(trial) if CONTINUES in trial.user_attrs else self._first(trial)
        except ScoreError as error:
            with self.workers.turn:
                self.ledger.fail(trial, str(error))
            raise
        with self.workers.turn:
            self.ledger.finish(trial, self._twin(record.number, record.source, record.plan) or record)
            self._tidy()

    def _advance(self) -> bool:
        """Tell of the plans that are new, also those of other workers; returns whether there are any."""
        found = len(self.records)
        for _ in range(found - self._told):
            self.progress.advance(self._best())
        new, self._told = found > self._told, found
        return new

    def _first(self, trial: Trial) -> Record:
        """Rung 0, or what an earlier trial of the same plan came to: nothing finished is done again."""
        source = trial.user_attrs.get("source", SEARCH)
        plan = self.proposals.plan(source, trial.params)
        assert plan is not None, "budgets are checked before a study starts"
        if twin := self._twin(trial.number, source, plan):
            return twin
        fits = self.profile.fits(plan, self.evaluator.device)
        score = self.evaluator.score(fits, f"trial {trial.number}")
        cost = self.proposals.decoder.costs(plan)
        return self._kept(Record(trial.number, source, plan, cost, (score,), not self.halving.last, model_of(trial.number)), fits)

    def _twin(self, number: int, source: str, plan: Plan) -> Record | None:
        """What another trial, of this or another worker, came to with the same plan."""
        other = next((r for r in self.records if r.plan == plan and r.twin is None and r.number != number), None)
        return other and replace(other, number=number, source=source, twin=other.number)

    def _further(self, trial: Trial) -> Record:
        """The next rung of a plan, from where its finetune paused."""
        number, rung = trial.user_attrs[CONTINUES], trial.user_attrs[RUNG]
        before = next(r for r in self.records if r.number == number)
        training = self.evaluator.training(self.profile.fits(before.plan, self.evaluator.device), self.paused.load(number))
        place, corrected = f"trial {number}, rung {rung}", before.scores[0].batchnorm
        score, fits = self.evaluator.trained(training, self.halving.ends[rung - 1], place, corrected)
        last = rung == self.halving.last
        if not last:
            self.paused.save(number, training.state_dict())
        return self._kept(replace(before, scores=(*before.scores, score), complete=last), fits)

    def _kept(self, record: Record, fits: Mapping[str, Decomposition]) -> Record:
        """``record`` as it counts, after keeping what was lost on each example and, if it is on the front, the model that counts."""
        losses = self.evaluator.losses(self.objectives[0])
        if losses is not None:
            self.losses.save(record.number, record.rung, losses)
        record = replace(record, untrained=self._harmed(record))
        if record.complete and record in self.agenda.members([*(r for r in self.records if r.number != record.number), record]):
            self._save(record, self._remade(record) if record.untrained else fits)
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

    def _save(self, record: Record, fits: Mapping[str, Decomposition]) -> None:
        """Save the candidate that the evaluator holds."""
        model = self.evaluator.compressed(self.profile.layers, record.plan, fits)
        about = {**self.about, "cost": record.cost.to_dict(), "score": record.score.to_dict()}
        about |= {"merged": self.timed.merged(record.plan)} if self.timed else {}
        artifact.save(model, record.plan, self.folder / record.model, about, self.evaluator.storage)

    def _remade(self, record: Record) -> Mapping[str, Decomposition]:
        """The factors of a finished plan that was not kept, as they were when it was scored; the evaluator then holds it."""
        fits, place = self.profile.fits(record.plan, self.evaluator.device), f"trial {record.number}"
        if record.score.fidelity:
            training, until = self.evaluator.training(fits), self.halving.ends[record.rung - 1]
            return self.evaluator.trained(training, until, place, record.scores[0].batchnorm)[1]
        self.evaluator.score(fits, place)
        return fits

    def _tidy(self) -> None:
        """Remove the saved models that are not on the front, and the finetunes of plans that are finished or cannot go on.

        What other workers are at stays as it is.
        """
        records, busy = self.records, self.ledger.under_way()
        models = {r.model for r in self.agenda.members(records)} | {model_of(number) for number in busy}
        for path in (self.folder / "models").glob("*"):
            kept = busy if path.name.startswith(".") else f"models/{path.name}" in models or path.name.startswith(RECOVERED)
            if not kept:
                shutil.rmtree(path, ignore_errors=True)
        going = {r.number for r in records if r.rung and not r.complete and r.twin is None} - self.ledger.stuck()
        self.paused.keep(going | busy)

    def _best(self) -> str:
        return describe(self.records, self.objectives, self.proposals.dense, self.halving.last)


def model_of(number: int) -> str:
    """Where the model of the plan whose first trial is ``number`` is kept, below the study folder."""
    return f"models/{number:04d}"


def describe(records: Sequence[Record], objectives: Sequence[str], dense: Mapping[str, float], last: int) -> str:
    """In one phrase: how many plans reached each rung, if there are several, the size of the front and its smallest member."""
    rungs = f"rungs {'/'.join(map(str, reached(records)))}, " if last else ""
    members = front(records, objectives)
    if not members:
        return rungs.rstrip(", ")
    smallest, cost = members[-1], objectives[1]
    ratio = getattr(smallest.cost, cost) / dense[cost]
    return f"{rungs}front of {len(members)}, to {cost} {ratio:.1%} at KL {smallest.score.kl:.3f}"


