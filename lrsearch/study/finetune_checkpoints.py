"""Paused finetunes: what is needed to go on, in a file per plan below the study folder.

A file is there from a plan's first trained rung until its last, or until the search has nothing left to do. Without it a
finetune starts over from the fits and comes to the same weights: it saves time, and nothing depends on it.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from lrsearch.errors import StudyError
from lrsearch.study.checkpoint import load_state, state_bytes
from lrsearch.study.study_folder import StudyFolder


@dataclass(frozen=True)
class FinetuneCheckpoints:
    """The paused finetunes of a study, one per plan."""

    folder: StudyFolder

    def save(self, number: int, state: Mapping[str, Any]) -> None:
        """Keep the ``state``, tensors and numbers, of plan ``number``: whole or not at all."""
        self.folder.blobs.put(self.folder.finetune_name(number), state_bytes(f"plan {number}", state))

    def load(self, number: int) -> dict[str, Any] | None:
        """The state of plan ``number``, on the CPU; None if there is none that can be read."""
        if (path := self.folder.blobs.local(self.folder.finetune_name(number))) is None:
            return None
        try:
            return load_state(path, f"plan {number}")
        except StudyError:
            return None

    def keep(self, numbers: Collection[int]) -> None:
        """Remove the states of all plans but ``numbers``, also those that a killed run left half written; what is no plan's stays."""
        for name, number in self.folder.finetunes():
            if number not in numbers:
                self.folder.blobs.remove(name)
