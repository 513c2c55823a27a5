"""The learning rate, and the loss that it lowers, found by short finetunes that held-out examples judge."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from lrsearch.errors import ScoreError
from lrsearch.spec.config import FinetuneConfig
from lrsearch.spec.recover import RecoverConfig
from lrsearch.spec.training import Loss, Recipe, TrainingConfig
from lrsearch.train.best import typical
from lrsearch.train.finetune import Training

FIRST = {"adam": 3e-3, "sgd": 1e-2}  # Adam's is relative: see Student; took ResNet-20's low rank furthest of those tried by hand
FACTOR = 10**0.5  # from one rate to the next; finer ones are not told apart in so few steps
DOWN = 10.0  # from a rate at which little or nothing was gained to the next: a short finetune of a large model takes minutes
MOST_RATES = 6  # finetunes of one loss
FRUITLESS = 3  # finetunes of one loss none of which clearly gained; two decades lie between them
CLEAR = 0.05  # share of the divergence, set by hand: a loss that takes away as much is taken; at tiny rates any seems to gain a little
HARM = 2.0  # times the divergence before: a rate that leaves more is over the edge, and none between it and the best is tried
TINY = 1e-30  # divergence, so that none is divided by
STEPS = 30  # of each of them, or the study's own if these are fewer


@dataclass
class RangeTest:
    """Which rate leaves the least.

    Attributes:
        tried: rate → divergence on each held-out example after a short finetune, ``(n,)``.
        untrained: the same before.
        longer: how many times as many steps the training has in which the rate falls once.
        loss: that was lowered.
        others: the losses that were tried too, and left more.
        polished: whether the finetunes began from a polish, which held-out examples had found better.
    """

    untrained: Tensor
    longer: float = 1.0
    loss: Loss = "auto"
    others: tuple[Loss, ...] = ()
    polished: bool = False
    tried: dict[float, Tensor] = field(default_factory=dict)

    @property
    def recipe(self) -> Recipe:
        """What the training takes."""
        return Recipe(self.loss, self.rate, self.polished)

    @property
    def rate(self) -> float:
        """:attr:`nearest` times the root of :attr:`longer`, at most the next rate; as it is where that does harm, or itself gained nothing.

        A longer finetune wants larger rates. Of ResNet-20 at half of its MACs 0.001 was the best for 30 steps, where 0.003 gained
        nothing; for 150 and 300 steps 0.003 was better than 0.001 and that better than 0.0003. Where 0.003 was the best, and 0.0095 left
        seven times the divergence before, 0.003 was better for 300 steps than 0.0067 (``studies/results/targets_resnet20.txt``).
        """
        larger = self.tried.get(_rounded(self.nearest * FACTOR))
        harmful = larger is not None and not mean(larger) <= HARM * mean(self.untrained)
        return _rounded(self.nearest * min(FACTOR, max(1.0, self.longer**0.5))) if self.gains and not harmful else self.nearest

    @property
    def nearest(self) -> float:
        """The rate with the least mean, or the least :func:`~lrsearch.train.best.typical`, divergence; where all failed, the smallest.

        Of the two the larger one that gains: the mean hangs on few examples, the typical one says little of them, and what is too large
        for so few steps seldom is for more.
        """
        best = {size: min(self.tried, key=lambda rate: (size(self.tried[rate]), rate)) for size in SIZES}
        return max((rate for size, rate in best.items() if size(self.tried[rate]) < size(self.untrained)), default=best[typical])

    @property
    def left(self) -> float:
        """Share of the divergence that :attr:`nearest` leaves, by its mean or typically, whichever is less."""
        return min((size(self.tried[self.nearest]) + TINY) / (size(self.untrained) + TINY) for size in SIZES)

    @property
    def gains_clearly(self) -> bool:
        """Whether :attr:`nearest` takes away :data:`CLEAR` of the divergence."""
        return self.left <= 1 - CLEAR

    @property
    def gains(self) -> bool:
        """Whether :attr:`nearest` is better than no training."""
        return self.left < 1

    def __str__(self) -> str:
        tried = ", ".join(f"{mean(far):.3g} ({typical(far):.3g}) at {rate:.2g}" for rate, far in sorted(self.tried.items()))
        start = "polished" if self.polished else "before"
        before = f"mean (typical) held-out divergence {mean(self.untrained):.3g} ({typical(self.untrained):.3g}) {start}"
        nothing = "" if self.gains else "; none of them gained anything, and longer ones may not either"
        instead = f" on loss: {self.loss}, as {' and '.join(self.others)} left more" if self.others else ""
        return f"learning rate {self.rate:.2g}, found by short finetunes{instead}: {before}, {tried}{nothing}"


def range_test(begun: Callable[[Recipe], Training], losses: Sequence[Loss], cycle: int) -> RangeTest:
    """Which loss and rate suit a training: the first loss that clearly gains at some rate; where none does, the one that leaves least.

    Features take ResNet-20 further than outputs do; EfficientNet-Lite0, with 40 % of its parameters and 450 images, they take nearer to
    the dense model's features and further from its outputs, at rates from 0.0001 to 0.001 (``studies/results/recipes.txt``).

    Args:
        begun: recipe → a short training at its start.
        losses: to try, one after another.
        cycle: steps of the long training in which its rate falls once.
    """
    def finetuned(loss: Loss, rate: float) -> Tensor:
        training = begun(Recipe(loss, rate))
        with suppress(ScoreError):
            training.run(training.config.steps)
            return training.best.last
        return torch.full_like(untrained, torch.inf)

    start = begun(Recipe(losses[0], 0.0))
    start.run(0)
    untrained = start.best.last
    first, longer = FIRST[start.config.optimizer], cycle / start.config.steps
    tests: list[RangeTest] = []
    for loss in losses:
        tests.append(replace(find_rate(partial(finetuned, loss), untrained, first / DOWN if tests else first, longer), loss=loss))
        if tests[-1].gains_clearly:
            break
    best = min(tests, key=lambda test: test.left)
    return replace(best, others=tuple(test.loss for test in tests if test is not best))


def short(config: FinetuneConfig | RecoverConfig) -> FinetuneConfig:
    """The finetune that a rate is tested by: ``config`` for as few steps, with frozen BatchNorm.

    In so few steps statistics that are free to move hide what a rate does: of ResNet-32 at 47 % of its MACs 30 steps left a larger
    held-out divergence than none at all rates, twice as much at the smallest (``studies/results/targets_resnet20.txt``).
    """
    shared = config.model_dump(include=set(TrainingConfig.model_fields))
    return FinetuneConfig(**shared, steps=min(STEPS, config.steps) if isinstance(config, FinetuneConfig) else STEPS)


def find_rate(finetuned: Callable[[float], Tensor], untrained: Tensor, first: float, longer: float = 1.0) -> RangeTest:
    """Try ``first`` and its neighbours, and go on from the best of them until both its neighbours are worse, at most six rates in all.

    While none is clearly better than no training, smaller ones alone are tried, at most three.

    A coarse form of the range test of Smith (2017), with whole short finetunes, as a rate that lowers the loss of the next steps may
    do harm in the end.

    Args:
        finetuned: rate → divergence on each held-out example, ``(n,)``; infinite where training failed.
        untrained: the same before training.
        first: rate to begin with.
    """
    found, next_rates = RangeTest(untrained, longer), [_rounded(first)]
    while next_rates and len(found.tried) < (MOST_RATES if not found.tried or found.gains_clearly else FRUITLESS):
        found.tried[next_rates[0]] = finetuned(next_rates[0])
        around = (found.nearest * FACTOR, found.nearest / FACTOR) if found.gains_clearly else (min(found.tried) / DOWN,)
        next_rates = [r for r in map(_rounded, around) if r not in found.tried]
    return found


def mean(divergences: Tensor) -> float:
    """Of divergences ``(n,)``, which rounding may make negative."""
    return float(divergences.double().clamp_min(0).mean())


SIZES = (mean, typical)  # of what is left, by which rates are compared


def _rounded(rate: float) -> float:
    """To two digits, so that a rate that is met again is known."""
    return float(f"{rate:.2g}")
