"""Score: what one evaluation of one candidate said."""

from dataclasses import asdict, dataclass
from typing import Any

KL_FLOOR = 1e-4  # nats: divergences below count as this where logarithms are taken; rounding in float32 leaves no more to tell
NOISE = 2.0  # standard errors: a difference of scores within them may be chance (95 % of a normal distribution)


@dataclass(frozen=True)
class Chance:
    """What a model scores that does not look at its inputs, and returns the mean of the dense model's outputs.

    Attributes:
        kl: mean divergence from the dense model's outputs.
        metric: None without one, or where the dense model is no better.
    """

    kl: float
    metric: float | None = None


@dataclass(frozen=True)
class Score:
    """Quality of a candidate on the score data.

    Attributes:
        metric: the task's metric, higher is better, such as top-1 as a fraction; None without one.
        kl: mean divergence from the dense model's outputs to the candidate's, of classes in nats.
        kl_stderr: standard error of that mean over the examples.
        fidelity: finetune steps the candidate had.
        batchnorm: whether recalibrated BatchNorm statistics were kept.
        metric_stderr: standard error of ``metric`` over the examples: binomial for top-1, None for a metric of the user's.
    """

    metric: float | None
    kl: float
    kl_stderr: float
    fidelity: int
    batchnorm: bool
    metric_stderr: float | None = None

    @property
    def quality(self) -> float:
        """The metric, where an objective needs one: a study without a metric has no such objective."""
        assert self.metric is not None
        return self.metric

    def at_chance(self, chance: Chance | None) -> bool:
        """Whether a model that scores so is of no use: it is no better than ``chance``, beyond the noise of the metric."""
        if chance is None:
            return False
        guesses = self.metric is not None and chance.metric is not None and self.metric <= chance.metric + NOISE * (self.metric_stderr or 0)
        return guesses or self.kl >= chance.kl

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
