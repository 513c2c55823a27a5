"""What a trial comes to: the score of a plan untrained, or at a further rung of its finetune."""

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from optuna.trial import Trial

from lrsearch.profile.sweep import Profile
from lrsearch.search.halving import Halving
from lrsearch.search.proposals import Proposals
from lrsearch.search.records import CONTINUES, RUNG, SEARCH, Record, values
from lrsearch.spec.plan import Plan
from lrsearch.spec.progress import Progress
from lrsearch.spec.score import NOISE
from lrsearch.spec.units import divergence_name
from lrsearch.study.evaluator import Evaluator, Scored
from lrsearch.study.finetune_checkpoints import FinetuneCheckpoints
from lrsearch.study.finetune_recipe import FinetuneRecipe
from lrsearch.study.front_models import ROUNDING
from lrsearch.study.losses import Losses
from lrsearch.study.study_folder import StudyFolder

OF_DISKS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}  # would fail every plan


@dataclass(frozen=True)
class TrialRunner:
    """Evaluates the plan of a trial and keeps what was lost on each example.

    Args:
        folder: the study folder.
        objectives: ``divergence`` or ``metric``, then costs.
        proposals: knows what plans cost.
        profile: has the fits of every plan.
        evaluator: scores them.
        halving: how long each rung finetunes.
        recipe: of finetunes.
        losses: of each example.
        checkpoints: of finetunes that go on later.
        progress: told where a finetune harms.
    """

    folder: StudyFolder
    objectives: tuple[str, ...]
    proposals: Proposals
    profile: Profile
    evaluator: Evaluator
    halving: Halving
    recipe: FinetuneRecipe
    losses: Losses
    checkpoints: FinetuneCheckpoints
    progress: Progress

    def run(self, trial: Trial, plan: Plan, records: Sequence[Record]) -> tuple[Record, Scored | None]:
        """One trial: a plan's first, or a further rung.

        Args:
            records: all that is known.

        Returns:
            What it came to, and the candidate that the evaluator holds; None where an earlier trial of the same plan has the score.
        """
        return self._further(trial, records) if CONTINUES in trial.user_attrs else self._first(trial, plan, records)

    def _first(self, trial: Trial, plan: Plan, records: Sequence[Record]) -> tuple[Record, Scored | None]:
        """Rung 0, or what an earlier trial of the same plan came to: nothing finished is done again."""
        source = trial.user_attrs.get("source", SEARCH)
        if known := twin(trial.number, source, plan, records):
            return known, None
        fits = self.profile.fits(plan, self.evaluator.device)
        with _users_code():
            scored = self.evaluator.score(fits, f"trial {trial.number}")
        cost = self.proposals.decoder.costs(plan)
        record = Record(trial.number, source, plan, cost, (scored.score,), not self.halving.last, self.folder.model_name(trial.number))
        return self._kept(record, scored), scored

    def _further(self, trial: Trial, records: Sequence[Record]) -> tuple[Record, Scored]:
        """The next rung of a plan, from where its finetune paused."""
        number, rung = trial.user_attrs[CONTINUES], trial.user_attrs[RUNG]
        before = next(r for r in records if r.number == number)
        fits = self.profile.fits(before.plan, self.evaluator.device)
        state, place, corrected = self.checkpoints.load(number), f"trial {number}, rung {rung}", before.scores[0].batchnorm
        with _users_code():
            self.recipe.settle(self.profile.fits(self._most_to_gain(records, before.plan), self.evaluator.device) or fits)
            training = self.evaluator.training(fits, state)
            scored = self.evaluator.trained(training, self.halving.ends[rung - 1], place, corrected)
        last = rung == self.halving.last
        if not last:
            self.checkpoints.save(number, training.state_dict())
        return self._kept(replace(before, scores=(*before.scores, scored.score), complete=last), scored), scored

    def _most_to_gain(self, records: Sequence[Record], plan: Plan) -> Plan:
        """The knapsack's plan that loses most and is better than chance, or ``plan``: one that loses nothing tells no learning rate."""
        known = [r for r in records if r.source == "knapsack" and not r.scores[0].at_chance(self.evaluator.chance)]
        return max(known, key=lambda r: r.scores[0].divergence).plan if known else plan

    def _kept(self, record: Record, scored: Scored) -> Record:
        """``record`` as it counts, after keeping what was lost on each example."""
        losses = scored.comparison.losses(self.objectives[0])
        if losses is not None:
            self.losses.save(record.number, record.rung, losses)
        return replace(record, untrained=self._harmed(record))

    def _harmed(self, record: Record) -> bool:
        """Whether the finetune made a plan worse than it was untrained, beyond the noise of the change; says so if it did."""
        (before, *_), (after, *_) = (values(record, self.objectives, rung) for rung in (0, record.rung))
        noise = NOISE * self.losses.error_of_change(record.number, record.rung)
        if after <= before + max(noise, ROUNDING * abs(before)):
            return False
        if record.plan.layers:
            name, sign = (divergence_name(self.evaluator.task.unit), 1) if self.objectives[0] == "divergence" else ("metric", -1)
            change = f"{record.scores[-1].fidelity} finetune steps took its {name} from {sign * before:.3g} to {sign * after:.3g}"
            self.progress.note(f"trial {record.number}: {change}, so it counts as it was before; lower proxy.finetune.learning_rate")
        return True


@contextmanager
def _users_code() -> Iterator[None]:
    """What runs the user's model: an OSError in here that is not of a disk is the model's or the data's, and fails the plan alone."""
    try:
        yield
    except OSError as error:
        if error.errno in OF_DISKS:
            raise
        raise RuntimeError(f"{type(error).__name__}: {error}") from error


def twin(number: int, source: str, plan: Plan, records: Sequence[Record]) -> Record | None:
    """What another trial, of this or another worker, came to with the same plan."""
    other = next((r for r in records if r.plan == plan and r.twin is None and r.number != number), None)
    return other and replace(other, number=number, source=source, twin=other.number)
