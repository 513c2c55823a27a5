"""Loss and learning rate of a study's finetunes: found once, with the first candidate that has one, and kept with the trials."""

from collections.abc import Mapping
from dataclasses import dataclass

from lrsearch.compress.fit import Decomposition
from lrsearch.spec.progress import Progress
from lrsearch.study.evaluator import Evaluator
from lrsearch.study.trials import TrialStore
from lrsearch.study.workers import Workers


@dataclass(frozen=True)
class FinetuneRecipe:
    """Makes sure that all workers of a study finetune alike.

    Args:
        evaluator: is told the recipe.
        trials: keep it.
        workers: who searches too.
        progress: told when it is found.
    """

    evaluator: Evaluator
    trials: TrialStore
    workers: Workers
    progress: Progress

    def settle(self, fits: Mapping[str, Decomposition]) -> None:
        """Find the recipe with the candidate of ``fits``, unless the settings or another trial have it."""
        if self.evaluator.recipe is None:
            self.evaluator.recipe = self.trials.recipe()
        if self.evaluator.recipe is None and fits:
            found = self.evaluator.range_test(fits)
            self.evaluator.recipe = self.workers.turn.do(lambda: self.trials.recipe(found.recipe))
            self.progress.note(str(found))
