"""Scheduler: what a study has to do next, as its storage has it, so that all its workers agree; to be asked in a turn."""

from collections.abc import Sequence
from dataclasses import dataclass

from optuna.trial import Trial

from lrsearch.search.halving import Halving
from lrsearch.search.records import SEARCH, Record, front
from lrsearch.study.latency import over_budget
from lrsearch.study.study_folder import StudyFolder
from lrsearch.study.trials import TrialStore


@dataclass(frozen=True)
class Scheduler:
    """What is queued, which rung is due, and how many plans the search still lacks.

    Args:
        folder: the study folder.
        trials: what was tried.
        halving: which plans are finetuned further.
        plans: how many the search is to finish.
    """

    folder: StudyFolder
    trials: TrialStore
    halving: Halving
    plans: int

    def ask(self) -> Trial | None:
        """Claim what is queued, else a rung that is due, else a plan of the sampler's; None if there is nothing of the kind now.

        The trials of workers that were killed are given up first.
        """
        if self.trials.give_up():
            self.trials.queue_controls()
        if self.trials.empty:
            left = self.left()
            if due := self._due(final=not left and not self.trials.running()):
                self.trials.queue_rung(*due)
            elif not left:
                return None
        return self.trials.ask()

    def left(self) -> int:
        """Plans still to begin: what is queued, and what the search lacks beyond that and what is under way."""
        queued, searched = self.trials.queued(), sum(r.source == SEARCH for r in self.trials.records())
        return len(queued) + max(0, self.plans - searched - [*queued, *self.trials.running()].count(SEARCH))

    @property
    def busy(self) -> bool:
        """Whether something is under way, which may give more to do."""
        return bool(self.trials.under_way())

    @property
    def done(self) -> bool:
        """Whether nothing is queued, under way, left or due."""
        return self.trials.empty and not self.busy and not self.left() and not self._due(final=True)

    def members(self, records: Sequence[Record]) -> list[Record]:
        """The front of those that hold."""
        return front(self._holding(records), self.trials.objectives)

    def _holding(self, records: Sequence[Record]) -> list[Record]:
        """``records`` without what is known to be over the latency budget."""
        over = over_budget(records, self.folder)
        return [r for r in records if r.number not in over]

    def _due(self, final: bool) -> tuple[Record, int] | None:
        """Who of those that hold is to be sent on, and to which rung: see :meth:`Halving.due`."""
        return self.halving.due(self._holding(self.trials.records()), self.trials.sent(), final)
