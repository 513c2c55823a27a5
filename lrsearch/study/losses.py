"""Losses: what each plan lost on each example, so that two plans are compared on the same examples.

On ResNet-20 (5,000 examples, 50 % and 25 % of the parameters) the standard error of the difference of two plans' KL is 0.33
to 0.76 times, in the median 0.5 to 0.6 times, what the two plans' own standard errors would give if they were independent;
that of top-1 0.23 to 0.56 times, in the median 0.3 to 0.5 times. It costs 2 bytes per example, plan and rung; rounding to
16 bits moves it by less than 1e-4 of itself.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lrsearch.search.noise import paired_errors

LOSSES = "losses"
LARGEST = float(np.finfo(np.float16).max)


def kl_before_training(folder: Path, objectives: Sequence[str]) -> "Callable[[int], NDArray[np.float64] | None] | None":
    """Number of a plan → its KL on each example at rung 0, in study ``folder``; None if the study keeps another loss."""
    return (lambda number: Losses(folder / LOSSES).of(number, 0)) if objectives[0] == "kl" else None


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
