"""Losses: what each plan lost on each example, so that two plans are compared on the same examples.

On ResNet-20 (5,000 examples, 50 % and 25 % of the parameters) the standard error of the difference of two plans' KL is 0.33
to 0.76 times, in the median 0.5 to 0.6 times, what the two plans' own standard errors would give if they were independent;
that of top-1 0.23 to 0.56 times, in the median 0.3 to 0.5 times. It costs 2 bytes per example, plan and rung; rounding to
16 bits moves it by less than 1e-4 of itself.

They are a blob each. Where machines share the trials, but no artifacts, they are with the trials, so that all decide by the same.
"""

import base64
import binascii
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from optuna.trial import FrozenTrial

from lrsearch.search.noise import paired_errors
from lrsearch.search.records import CONTINUES, RUNG
from lrsearch.study.study_folder import StudyFolder

LARGEST = float(np.finfo(np.float16).max)
LOSSES = "losses"
PART = 48_000  # characters of a trial's attribute; MySQL keeps 65,535 bytes


@dataclass(frozen=True)
class Losses:
    """The losses kept in a study: float16, one number per example. What is damaged counts as not kept.

    They are read once, as they never change: ``_read`` has those that were found, ``_told`` what trials said, as (plan, rung).
    """

    folder: StudyFolder
    _read: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    _told: dict[tuple[int, int], bytes] = field(default_factory=dict)

    def hear(self, trials: Iterable[FrozenTrial]) -> None:
        """Take what finished ``trials`` say of them."""
        for trial in trials:
            if (data := _said(trial.user_attrs)) is not None:
                number, rung = trial.user_attrs.get(CONTINUES, trial.number), trial.user_attrs.get(RUNG, 0)
                self._told[number, rung] = data
                self._read.pop(self.folder.losses_name(number, rung), None)  # of a try that was given up

    def telling(self, number: int, rung: int) -> dict[str, str]:
        """What the trial of plan ``number`` at ``rung`` is to say of them; nothing where blobs are all that is needed."""
        return self.blob(number, rung) if self.folder.needs_trials else {}

    def blob(self, number: int, rung: int) -> dict[str, str]:
        """The blob of plan ``number`` at ``rung`` as attributes of a trial; nothing if there is none."""
        text = base64.b64encode(self.folder.blobs.get(self.folder.losses_name(number, rung)) or b"").decode()
        return {f"{LOSSES}/{i}": text[start : start + PART] for i, start in enumerate(range(0, len(text), PART))}

    def before_training(self, objectives: Sequence[str]) -> "Callable[[int], NDArray[np.float64] | None] | None":
        """Number of a plan → its divergence on each example at rung 0; None if the study keeps another loss."""
        return (lambda number: self.of(number, 0)) if objectives[0] == "divergence" else None

    def save(self, number: int, rung: int, losses: ArrayLike) -> None:
        """Keep the losses ``(examples,)`` of plan ``number`` at ``rung``, whole or not at all."""
        data = np.minimum(np.asarray(losses, dtype=np.float64), LARGEST).astype("<f2").tobytes()
        name = self.folder.losses_name(number, rung)
        self._read.pop(name, None)
        self.folder.blobs.put(name, data)
        if self.folder.needs_trials:
            self._told[number, rung] = data  # its trial is about to say so

    def of(self, number: int, rung: int) -> NDArray[np.float64] | None:
        """The losses ``(examples,)`` of plan ``number`` at ``rung``, or None if they were not kept."""
        name = self.folder.losses_name(number, rung)
        if name not in self._read and (data := self._kept(number, rung, name)) is not None:
            self._read[name] = np.frombuffer(data, "<f2").astype(np.float64)
        return self._read.get(name)

    def _kept(self, number: int, rung: int, name: str) -> bytes | None:
        """By whom they are kept; a blob that only this machine has is left alone where the trials are to tell."""
        data = None if self.folder.needs_trials else self.folder.blobs.get(name)
        return self._told.get((number, rung)) if data is None else data

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


def _said(attributes: Mapping[str, Any]) -> bytes | None:
    """Inverse of :meth:`Losses.blob`; None if a trial says nothing, or nothing that can be read."""
    parts = sum(key.startswith(f"{LOSSES}/") for key in attributes)
    try:
        data = base64.b64decode("".join(attributes[f"{LOSSES}/{i}"] for i in range(parts)), validate=True)
    except (KeyError, TypeError, binascii.Error):
        return None
    return data if data and not len(data) % 2 else None
