"""A study: controls first, then the sampler's plans and, from rung to rung, the best of them; each stored before the next."""

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
from lrsearch.proxy.evaluator import Evaluator
from lrsearch.search.halving import Halving
from lrsearch.search.latency import Timed, over_budget
from lrsearch.search.ledger import RUNG, Ledger
from lrsearch.search.losses import LOSSES, Losses
from lrsearch.search.paused import Paused
from lrsearch.search.progress import Progress
from lrsearch.search.proposals import Proposals
from lrsearch.search.records import CONTINUES, SEARCH, Record, front, reached, values
from lrsearch.search.recovered import RECOVERED
from lrsearch.spec.config import SearchConfig

MAX_FAILURES = 5
NOISE = 2.0  # standard errors
ROUNDING = 1e-3  # of a loss; what is kept of each example has 16 bits


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
        self.ledger = Ledger(self.folder, self.objectives, self.proposals)
        self.losses, self.paused = Losses(self.folder / LOSSES), Paused(self.folder / "paused")
        spans = {m: (low * dense, high * dense) for m, (low, high) in self.proposals.targets.items() for dense in [self.proposals.dense[m]]}
        ends = self.evaluator.config.finetune.ends
        self.halving = Halving.of(self.objectives, spans, self.config.control_points, ends, self.config.reduction, self.losses)

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
        for note in self.ledger.queue_controls():
            self.progress.note(note)
        started = time.monotonic()
        self._search(started)
        while self.timed and self.timed.here and self._over_when_measured(self.timed):
            self._search(started)  # what stood behind the plans that left takes their places, on the front and at the rungs
        if self._done():
            self.paused.keep(set())
        elif self.config.timeout:
            self.progress.note(f"stopped by the timeout of {self.config.timeout:g} s")
        return self.records

    def _search(self, started: float) -> None:
        """Evaluate what is queued or due, until nothing is or the time is up."""
        finished, failures = len(self.records), 0
        self.progress.stage("Searching", finished + self._left(), finished)
        while self._queue():
            if self.config.timeout and time.monotonic() - started > self.config.timeout:
                break
            try:
                self._step()
                failures = 0
            except ScoreError as error:
                self.progress.note(str(error))
                failures += 1
                if failures == MAX_FAILURES:
                    raise
        self._tidy()

    def _over_when_measured(self, timed: Timed) -> bool:
        """Measure the front whole, and return whether some of it is over the latency budget, and has left it."""
        members = self._members(self.records)
        for record in members:
            if not (self.folder / record.model).exists():
                self._save(record, self._remade(record))
        return timed.time_front({r.number: r.plan for r in members}, self.folder, self.progress)

    def _members(self, records: Sequence[Record]) -> list[Record]:
        """The front of those that hold."""
        return front(self._holding(records), self.objectives)

    def _holding(self, records: Sequence[Record]) -> list[Record]:
        """``records`` without what is known to be over the latency budget."""
        over = over_budget(records, self.folder)
        return [r for r in records if r.number not in over]

    def _due(self, records: Sequence[Record], final: bool) -> tuple[Record, int] | None:
        """Who of those that hold is to be sent on, and to which rung: see :meth:`Halving.due`."""
        return self.halving.due(self._holding(records), self.ledger.sent(), final)

    def _left(self) -> int:
        """Plans still to evaluate: what is queued, and what the search lacks beyond that."""
        queued = self.ledger.queued()
        searched = sum(r.source == SEARCH for r in self.records)
        return len(queued) + max(0, self.config.trials - searched - queued.count(SEARCH))

    def _queue(self) -> bool:
        """Queue a further rung if one is due and nothing else is queued; returns whether there is anything to do."""
        if not self.ledger.empty:
            return True
        left = self._left()
        if due := self._due(self.records, final=not left):
            self.ledger.queue_rung(*due)
        return due is not None or left > 0

    def _step(self) -> None:
        """One trial: a plan's first, or a further rung."""
        trial = self.ledger.ask()
        if trial is None:
            return
        further = CONTINUES in trial.user_attrs
        try:
            record = self._further(trial) if further else self._first(trial)
            self.ledger.finish(trial, record)
        except ScoreError as error:
            self.ledger.fail(trial, str(error))
            self._tell(further)
            raise
        self._tidy()
        self._tell(further)

    def _tell(self, further: bool) -> None:
        """Show the best so far; a further rung is no step, as nobody knows how many there will be."""
        (self.progress.show if further else self.progress.advance)(self._best())

    def _first(self, trial: Trial) -> Record:
        """Rung 0, or what an earlier trial of the same plan came to: nothing finished is done again."""
        source = trial.user_attrs.get("source", SEARCH)
        plan = self.proposals.plan(source, trial.params)
        assert plan is not None, "budgets are checked before a study starts"
        if twin := next((r for r in self.records if r.plan == plan and r.twin is None), None):
            return replace(twin, number=trial.number, source=source, twin=twin.number)
        fits = self.profile.fits(plan, self.evaluator.device)
        score = self.evaluator.score(fits, f"trial {trial.number}")
        cost, model = self.proposals.decoder.costs(plan), f"models/{trial.number:04d}"
        return self._kept(Record(trial.number, source, plan, cost, (score,), not self.halving.last, model), fits)

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
        if record.complete and record in self._members([*(r for r in self.records if r.number != record.number), record]):
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
        """Remove the saved models that are not on the front, and the finetunes of plans that are finished or cannot go on."""
        records = self.records
        models = {r.model for r in self._members(records)}
        for path in (self.folder / "models").glob("*"):
            if f"models/{path.name}" not in models and not path.name.startswith(RECOVERED):
                shutil.rmtree(path, ignore_errors=True)
        self.paused.keep({r.number for r in records if r.rung and not r.complete and r.twin is None} - self.ledger.stuck())

    def _done(self) -> bool:
        """Whether nothing is left to evaluate or to send on."""
        return self.ledger.empty and not self._left() and not self._due(self.records, final=True)

    def _best(self) -> str:
        return describe(self.records, self.objectives, self.proposals.dense, self.halving.last)


def describe(records: Sequence[Record], objectives: Sequence[str], dense: Mapping[str, float], last: int) -> str:
    """In one phrase: how many plans reached each rung, if there are several, the size of the front and its smallest member."""
    rungs = f"rungs {'/'.join(map(str, reached(records)))}, " if last else ""
    members = front(records, objectives)
    if not members:
        return rungs.rstrip(", ")
    smallest, cost = members[-1], objectives[1]
    ratio = getattr(smallest.cost, cost) / dense[cost]
    return f"{rungs}front of {len(members)}, to {cost} {ratio:.1%} at KL {smallest.score.kl:.3f}"


