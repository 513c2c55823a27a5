"""The latency of a front's models, each measured whole on this machine, at the end of a search."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lrsearch.errors import ConfigError
from lrsearch.search.records import Record
from lrsearch.spec.plan import Plan
from lrsearch.spec.progress import Progress
from lrsearch.study.evaluator import Evaluator
from lrsearch.study.latency import FrontTimer, Timed, behind_int8
from lrsearch.study.study_folder import StudyFolder

log = logging.getLogger("lrsearch")


@dataclass(frozen=True)
class FrontLatency:
    """Measures the front of a study.

    Args:
        folder: the study folder, where what is measured is kept.
        evaluator: scores the dense model in int8.
        progress: told what was found.
        timed: the latencies, if the study has them.
        front_timer: if it has none: what measures some plans whole.
    """

    folder: StudyFolder
    evaluator: Evaluator
    progress: Progress
    timed: Timed | None = None
    front_timer: Callable[[Sequence[Plan]], FrontTimer] | None = None

    @property
    def verifies(self) -> bool:
        """Whether the study has latencies, and they are of this machine, so that :meth:`over_budget` can tell."""
        return self.timed is not None and self.timed.here

    def hear(self) -> None:
        """Take over what another machine measured."""
        self.folder.fetch_file(self.folder.measured_front)

    def over_budget(self, members: Sequence[Record]) -> bool:
        """Measure ``members`` whole; returns whether some of them are over the latency budget, and so have left the front."""
        assert self.timed is not None
        self.hear()
        self.timed.time_dense_int8(self.folder, self.evaluator.dense_in_int8, self.progress)
        refused = self.timed.time_front({r.number: r.plan for r in members}, self.folder, self.progress)
        self.folder.share_file(self.folder.measured_front)
        if not refused and (told := behind_int8(members, self.folder)):
            self.progress.note(told)
        return refused

    def survey(self, members: Sequence[Record]) -> None:
        """Of a study without latencies, measure some of its front whole, and tell what is slower than the dense model."""
        self.hear()
        plans = {r.number: r.plan for r in members}
        if not plans or self.front_timer is None:
            return
        if all(choice.executed.untouched for plan in plans.values() for choice in plan.layers.values()):
            self.progress.note("the front takes as long as the dense model: a runtime multiplies by zeros as by other values")
            return
        try:
            self._compare(self.front_timer(list(plans.values())), plans)
        except ConfigError as error:  # no runtime is installed
            log.info("the front's latency was not measured: %s", error)
        except Exception as error:  # of a front that is as good without
            self.progress.note(f"the front's latency was not measured: {' '.join(str(error).split()) or type(error).__name__}")

    def _compare(self, timed: FrontTimer, plans: Mapping[int, Plan]) -> None:
        timed.time_front(plans, self.folder, self.progress)
        self.folder.share_file(self.folder.measured_front)
        if told := timed.slower(plans, self.folder):
            self.progress.note(told)
