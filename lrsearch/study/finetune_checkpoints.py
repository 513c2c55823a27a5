"""Paused finetunes: what is needed to go on, in a file per plan below the study folder.

A file is there from a plan's first trained rung until its last, or until the search has nothing left to do. Without it a
finetune starts over from the fits and comes to the same weights: it saves time, and nothing depends on it.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrsearch.errors import StudyError
from lrsearch.study.checkpoint import load_state, save_state

_OWN = re.compile(r"\d{4,}\.(pt|writing)")


@dataclass(frozen=True)
class Paused:
    """The files ``paused/NNNN.pt`` in a study folder."""

    folder: Path

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:04d}.pt"

    def save(self, number: int, state: Mapping[str, Any]) -> None:
        """Keep the ``state``, tensors and numbers, of plan ``number``: whole or not at all."""
        self.folder.mkdir(exist_ok=True)
        save_state(self._path(number), f"plan {number}", state)

    def load(self, number: int) -> dict[str, Any] | None:
        """The state of plan ``number``, on the CPU; None if there is none that can be read."""
        try:
            return load_state(self._path(number), f"plan {number}")
        except StudyError:
            return None

    def keep(self, numbers: Collection[int]) -> None:
        """Remove the files of all plans but ``numbers``, also those that a killed run left half written; what is not a plan's stays."""
        kept = {self._path(number).stem for number in numbers}
        for path in self.folder.glob("*"):
            if _OWN.fullmatch(path.name) and path.stem not in kept and path.is_file():
                path.unlink(missing_ok=True)
