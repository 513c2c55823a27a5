"""Score: what one evaluation of one candidate said."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

KL_FLOOR = 1e-4  # nats: divergences below count as this where logarithms are taken; rounding in float32 leaves no more to tell
NOISE = 2.0  # standard errors: a difference of scores within them may be chance (95 % of a normal distribution)
FORMER_NAMES = {  # of what is kept in study folders, and of columns of tables → today's
    "kl": "divergence", "kl_stderr": "divergence_stderr", "kl_before_finetune": "divergence_before_finetune",
    "onnx_kl": "onnx_divergence", "onnx_kl_stderr": "onnx_divergence_stderr",
}


def renamed(kept: Mapping[str, Any]) -> dict[str, Any]:
    """``kept`` with today's names of its keys."""
    return {FORMER_NAMES.get(key, key): value for key, value in kept.items()}


@dataclass(frozen=True)
class Chance:
    """What a model scores that does not look at its inputs, and returns the mean of the dense model's outputs.

    Attributes:
        divergence: mean divergence from the dense model's outputs.
        metric: None without one, or where the dense model is no better.
    """

    divergence: float
    metric: float | None = None

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> Self:
        """Inverse of ``asdict``, also by former names."""
        return cls(**renamed(kept))


@dataclass(frozen=True)
class Score:
    """Quality of a candidate on the score data.

    Attributes:
        metric: the task's metric, higher is better, such as top-1 as a fraction; None without one.
        divergence: mean divergence from the dense model's outputs to the candidate's, of classes in nats.
        divergence_stderr: standard error of that mean over the examples.
        fidelity: finetune steps the candidate had.
        batchnorm: whether recalibrated BatchNorm statistics were kept.
        metric_stderr: standard error of ``metric`` over the examples: binomial for top-1, None for a metric of the user's.
    """

    metric: float | None
    divergence: float
    divergence_stderr: float
    fidelity: int
    batchnorm: bool
    metric_stderr: float | None = None

    @property
    def kl(self) -> float:
        """The former name of :attr:`divergence`."""
        return self.divergence

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
        return guesses or self.divergence >= chance.divergence

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`to_dict`, also by former names."""
        return cls(**renamed(kept))
