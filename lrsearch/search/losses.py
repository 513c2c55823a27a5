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

LARGEST = float(np.finfo(np.float16).max)


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

    def noise(self, numbers: Sequence[int], rung: int) -> NDArray[np.float64]:
        """Standard errors of the paired differences of the mean losses of plans ``numbers`` at ``rung``, ``(n, n)``; 0 where unknown."""
        paths = [self._path(number, rung) for number in numbers]
        known = [i for i, path in enumerate(paths) if path.exists()]
        errors = np.zeros((len(paths), len(paths)))
        if known:
            errors[np.ix_(known, known)] = paired_errors(np.stack([np.fromfile(paths[i], "<f2") for i in known]))
        return errors


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
