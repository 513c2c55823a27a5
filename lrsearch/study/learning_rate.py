"""The learning rate of a study's finetunes: found once, with the first candidate that has one, and kept with the trials."""

from collections.abc import Mapping
from dataclasses import dataclass

from lrsearch.compress.fit import Decomposition
from lrsearch.spec.progress import Progress
from lrsearch.study.evaluator import Evaluator
from lrsearch.study.trials import TrialStore
from lrsearch.study.workers import Workers


@dataclass(frozen=True)
class LearningRate:
    """Makes sure that all workers of a study finetune at the same rate.

    Args:
        evaluator: is told the rate.
        trials: keep it.
        workers: who searches too.
        progress: told when it is found.
    """

    evaluator: Evaluator
    trials: TrialStore
    workers: Workers
    progress: Progress

    def settle(self, fits: Mapping[str, Decomposition]) -> None:
        """Find the rate with the candidate of ``fits``, unless the settings or another trial have it."""
        if self.evaluator.learning_rate is None:
            self.evaluator.learning_rate = self.trials.learning_rate()
        if self.evaluator.learning_rate is None and fits:
            found = self.evaluator.range_test(fits)
            self.evaluator.learning_rate = self.workers.turn.do(lambda: self.trials.learning_rate(found.rate))
            self.progress.note(str(found))
