"""Loss and learning rate of a study's finetunes: found once, with the first candidate that has one, and kept with the trials."""

from collections.abc import Mapping
from dataclasses import dataclass

from lrsearch.compress.fit import Decomposition
from lrsearch.spec.config import FinetuneConfig
from lrsearch.spec.progress import Progress
from lrsearch.study.evaluator import Evaluator
from lrsearch.study.trials import TrialStore
from lrsearch.study.workers import Workers
from lrsearch.train.teacher import Teacher


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

    def settle(self, fits: Mapping[str, Decomposition], teacher: Teacher | None = None, config: FinetuneConfig | None = None) -> None:
        """Find the recipe with the candidate of ``fits``, unless the settings or another trial have it.

        Args:
            teacher, config: where the study has no finetunes of its own.
        """
        if self.evaluator.recipe is None:
            self.evaluator.recipe = self.trials.recipe()
        if self.evaluator.recipe is None and fits:
            found = self.evaluator.range_test(fits, teacher, config)
            self.evaluator.recipe = self.workers.turn.do(lambda: self.trials.recipe(found.recipe))
            self.progress.note(str(found))
