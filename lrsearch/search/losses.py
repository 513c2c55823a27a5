"""Losses: what each plan lost on each example, so that two plans are compared on the same examples.

On ResNet-20 (5,000 examples, 50 % and 25 % of the parameters) the standard error of the difference of two plans' KL is 0.33
to 0.76 times, in the median 0.5 to 0.6 times, what the two plans' own standard errors would give if they were independent;
that of top-1 0.23 to 0.56 times, in the median 0.3 to 0.5 times. It costs 2 bytes per example, plan and rung; rounding to
16 bits moves it by less than 1e-4 of itself.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

LOSSES = "losses"
LARGEST = float(np.finfo(np.float16).max)
TREND = 3


def kl_losses(folder: Path, objectives: Sequence[str]) -> "Losses | None":
    """The KL on each example of the plans in study ``folder``; None if the study keeps another loss."""
    return Losses(folder / LOSSES) if objectives[0] == "kl" else None


@dataclass(frozen=True)
class Losses:
    """The files ``losses/NNNN-RUNG.f16`` in a study folder: float16, one number per example."""

    folder: Path

    def _path(self, number: int, rung: int) -> Path:
        return self.folder / f"{number:04d}-{rung}.f16"

    def save(self, number: int, rung: int, losses: ArrayLike) -> None:
        """Keep the losses ``(examples,)`` of plan ``number`` at ``rung``, whole or not at all."""
        self.folder.mkdir(exist_ok=True)
        path = self._path(number, rung)
        scratch = path.with_suffix(f".writing-{os.getpid()}")
        scratch.write_bytes(np.minimum(np.asarray(losses, dtype=np.float64), LARGEST).astype("<f2").tobytes())
        os.replace(scratch, path)

    def of(self, number: int, rung: int) -> NDArray[np.float64] | None:
        """The losses ``(examples,)`` of plan ``number`` at ``rung``, or None if they were not kept."""
        path = self._path(number, rung)
        return np.fromfile(path, "<f2").astype(np.float64) if path.exists() else None

    def noise(self, numbers: Sequence[int], rung: int) -> NDArray[np.float64]:
        """Standard errors of the paired differences of the mean losses of plans ``numbers`` at ``rung``, ``(n, n)``; 0 where unknown."""
        found = {i: losses for i, number in enumerate(numbers) if (losses := self.of(number, rung)) is not None}
        errors = np.zeros((len(numbers), len(numbers)))
        if found:
            errors[np.ix_([*found], [*found])] = paired_errors(np.stack([*found.values()]))
        return errors

    def error_of_change(self, number: int, rung: int) -> float:
        """Standard error of how much the mean loss of plan ``number`` changed from rung 0 to ``rung``; 0 if unknown."""
        before, after = self.of(number, 0), self.of(number, rung)
        return 0.0 if before is None or after is None else float(paired_errors(np.stack([before, after]))[0, 1])


def paired_errors(losses: ArrayLike) -> NDArray[np.float64]:
    """Standard error of the mean of ``losses[i] - losses[j]`` over the examples, of losses ``(n, examples)``; 0 of a single example."""
    values = np.asarray(losses, dtype=np.float64)
    examples = values.shape[1]
    if examples < 2:
        return np.zeros((len(values), len(values)))
    covariance = np.atleast_2d(np.cov(values))
    own = covariance.diagonal()
    errors: NDArray[np.float64] = np.sqrt(np.maximum(0.0, own[:, None] + own - 2 * covariance) / examples)
    return errors


def own_luck(losses: ArrayLike) -> NDArray[np.float64]:
    """Covariance of the logarithms of the mean losses, ``(n, n)``, without what the examples do to all plans of like loss.

    To first order the logarithm of a mean errs by the mean of ``losses / mean``, example by example. What is common to all plans, or
    changes with the loss as a parabola does, cannot make one plan look better than its neighbours on a front, so it is fitted and
    taken out.

    Args:
        losses: ``(n, examples)``, with means above 0.
    """
    values = np.asarray(losses, dtype=np.float64)
    means = values.mean(1, keepdims=True)
    trend = np.vander(np.log(means[:, 0]), TREND)
    relative = values / means - 1
    own = relative - trend @ np.linalg.lstsq(trend, relative, rcond=None)[0]
    covariance: NDArray[np.float64] = own @ own.T / values.shape[1] ** 2
    return covariance
