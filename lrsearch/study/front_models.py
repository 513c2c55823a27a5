"""The saved models of a study: those of the front, each as it was when it was scored."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lrsearch.compress import artifact
from lrsearch.errors import LrsearchError
from lrsearch.profile.sweep import Profile
from lrsearch.search.halving import Halving
from lrsearch.search.records import Record
from lrsearch.spec.plan import Plan
from lrsearch.spec.progress import Progress
from lrsearch.spec.score import Score
from lrsearch.spec.units import divergence_name
from lrsearch.study.evaluator import Evaluator, Scored
from lrsearch.study.finetune_recipe import FinetuneRecipe
from lrsearch.study.study_folder import StudyFolder

ROUNDING = 1e-3  # of a loss; what is kept of each example has 16 bits
ROUNDING_FLOOR = 1e-6  # nats, and share of examples: scores are float32


@dataclass(frozen=True)
class FrontModels:
    """Saves the models of the front, makes those again that are gone, and removes those that left it.

    Args:
        folder: the study folder.
        profile: has the fits of every plan.
        evaluator: scores them.
        halving: how long each rung finetunes.
        recipe: of finetunes that are done again.
        about: kept in every saved model's ``plan.json``.
        progress: told what could not be made again.
        merged: what a plan's latency was measured as, if the study has latencies.
    """

    folder: StudyFolder
    profile: Profile
    evaluator: Evaluator
    halving: Halving
    recipe: FinetuneRecipe
    about: Mapping[str, Any]
    progress: Progress
    merged: Callable[[Plan], Any] | None = None

    def save(self, record: Record, scored: Scored) -> None:
        """Save the candidate of ``record``, untrained where that is what counts; its ``plan.json`` has the score of what is saved."""
        scored = self._remade(record) if record.untrained else scored
        self._write(record, scored)

    def restore(self, members: Sequence[Record], late: bool) -> None:
        """Make the models of ``members`` that are not whole on disk again.

        Args:
            late: there is no time to; what is missing is told.
        """
        gone = {r.model: r for r in members if not self._whole(r.model)}
        if gone and late:
            self.progress.note(f"{', '.join(gone)} are gone or damaged, and there was no time to make them again: search on")
            return
        for record in gone.values():
            try:
                again = self._remade(record)
                artifact.remove(self.folder.path / record.model)  # what is left of it
                self._write(record, again)
            except Exception as error:  # of the user's model; the others are made all the same
                told = str(error) if isinstance(error, LrsearchError) else f"{type(error).__name__}: {error}"
                self.progress.note(f"{record.model} is gone and cannot be made again: {told}")

    def _whole(self, model: str) -> bool:
        """Whether ``model`` is whole on disk, or another machine has it."""
        if not artifact.whole(self.folder.path / model):
            self.folder.fetch(model)
        return artifact.whole(self.folder.path / model)

    def tidy(self, members: Sequence[Record], busy: Collection[int]) -> None:
        """Remove the models that the search made and that are neither on the front nor of the trials that are ``busy``."""
        models = {r.model for r in members} | {self.folder.model_name(number) for number in busy}
        for path in self.folder.searched_models():
            kept = busy if path.name.startswith(".") else self.folder.model_name(int(path.name)) in models
            if not kept:
                artifact.remove(path)
        for name, number in self.folder.shared_models():
            if self.folder.model_name(number) not in models:
                self.folder.blobs.remove(name)

    def _write(self, record: Record, scored: Scored) -> None:
        """Save ``scored`` as the model of ``record``."""
        model, plain = self.evaluator.compressed(self.profile.layers, record.plan, scored), self.evaluator.in_float32(scored, record.model)
        about = {**self.about, "cost": record.cost.to_dict(), "score": record.score.to_dict()}
        about |= {"merged": self.merged(record.plan)} if self.merged else {}
        about |= {} if same(scored.score, record.score) else {"score": scored.score.to_dict(), "recorded": record.score.to_dict()}
        about |= {"float32": plain.to_dict()} if plain else {}
        artifact.save(model, record.plan, self.folder.path / record.model, about, self.evaluator.storage)
        self.folder.share(record.model)

    def _remade(self, record: Record) -> Scored:
        """A finished plan that was not kept, as it was when it was scored; told where it does not score the same."""
        fits, place = self.profile.fits(record.plan, self.evaluator.device), f"trial {record.number}"
        if record.score.fidelity:
            self.recipe.settle(fits)
            training, until = self.evaluator.training(fits), self.halving.ends[record.rung - 1]
            scored = self.evaluator.trained(training, until, place, record.scores[0].batchnorm)
        else:
            scored = self.evaluator.score(fits, place)
        if not same(scored.score, record.score):
            far, metric = (f"{name} {a:.4g}, not {b:.4g}" for name, a, b in (
                (divergence_name(self.evaluator.task.unit), scored.score.divergence, record.score.divergence),
                ("metric", scored.score.metric, record.score.metric),
            ))
            self.progress.note(f"{place}: made again, its model scores {far}; {metric}; its plan.json has both")
        return scored


def same(a: Score, b: Score) -> bool:
    """Whether two scores are of the same model, to within the rounding of another order of summation."""
    pairs = ((a.divergence, b.divergence), *(((a.metric, b.metric),) if a.metric is not None and b.metric is not None else ()))
    return all(math.isclose(x, y, rel_tol=ROUNDING, abs_tol=ROUNDING_FLOOR) for x, y in pairs)
