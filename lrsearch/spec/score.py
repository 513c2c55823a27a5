"""Score: what one evaluation of one candidate said."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Score:
    """Quality of a candidate on the score data.

    Attributes:
        metric: the task metric, higher is better (top-1 as a fraction, by default).
        kl: mean KL divergence from the dense model's output to the candidate's, in nats.
        kl_stderr: standard error of that mean over the examples.
        fidelity: finetune steps the candidate had.
        batchnorm: whether recalibrated BatchNorm statistics were kept.
        metric_stderr: standard error of ``metric`` over the examples: binomial for top-1, None for a metric of the user's.
    """

    metric: float
    kl: float
    kl_stderr: float
    fidelity: int
    batchnorm: bool
    metric_stderr: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
