"""How long a search still takes: scores of plans are quick and come first, finetunes are slow and come later."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from lrsearch.search.records import Record, reached

PASSES = 4  # through the network that a step of a finetune takes: the dense model's, the plan's, and back, which is about two


@dataclass
class Pace:
    """What a search's steps took, and the time left.

    Args:
        reduction: at least one plan in so many goes on to the next rung.
        heavier: how many times as long as a score the finetune up to each rung above 0 is thought to take, until one was seen.
        took: seconds of the steps of each rung, 0 first.
    """

    reduction: int
    heavier: Sequence[float]
    took: dict[int, list[float]] = field(default_factory=dict)

    @classmethod
    def of(cls, reduction: int, ends: Sequence[int], batch: int, examples: int) -> "Pace":
        """That of finetunes of ``batch`` examples a step up to ``ends``, where a score is of ``examples``."""
        steps = [end - start for start, end in zip((0, *ends), ends, strict=False)]
        return cls(reduction, [1 + PASSES * n * batch / max(examples, 1) for n in steps])

    def note(self, record: Record, seconds: float) -> None:
        """The step that gave ``record`` took so long; what an equal plan had scored before says nothing."""
        if record.twin is None:
            self.took.setdefault(record.rung, []).append(seconds)

    def share(self, records: Sequence[Record], to_come: int, elapsed: float) -> float:
        """How much of the work is done after ``elapsed`` seconds, with ``to_come`` plans still to begin; 0 if nothing tells."""
        left = self._left(reached(records), to_come)
        return elapsed / (elapsed + left) if left is not None and elapsed > 0 else 0.0

    def _left(self, done: Sequence[int], to_come: int) -> float | None:
        """Seconds; None before the first score."""
        if 0 not in self.took or not done:
            return None
        score, came, seconds = median(self.took[0]), float(done[0] + to_come), to_come * median(self.took[0])
        for rung, heavier in enumerate(self.heavier, 1):
            here = done[rung] if rung < len(done) else 0
            going_on = max(1 / self.reduction, here / done[rung - 1] if rung <= len(done) else 0)
            came *= going_on
            seconds += max(came - here, 0) * (median(self.took[rung]) if rung in self.took else heavier * score)
        return seconds
