"""Paused finetunes: what is needed to go on, in a file per plan below the study folder.

A file is there from a plan's first trained rung until its last, or until the search has nothing left to do. Without it a
finetune starts over from the fits and comes to the same weights: it saves time, and nothing depends on it.
"""

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


@dataclass(frozen=True)
class Paused:
    """The files ``paused/NNNN.safetensors`` in a study folder."""

    folder: Path

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:04d}.safetensors"

    def save(self, number: int, state: Mapping[str, Any]) -> None:
        """Keep the nested ``state``, tensors and JSON values, of plan ``number``: whole or not at all."""
        self.folder.mkdir(exist_ok=True)
        tensors: dict[str, Tensor] = {}
        outline = _outline(state, tensors)
        scratch = self.folder / f".writing-{number:04d}-{os.getpid()}"
        save_file(tensors, scratch, {"state": json.dumps(outline)})
        os.replace(scratch, self._path(number))

    def load(self, number: int) -> dict[str, Any] | None:
        """The state of plan ``number``; None if there is none that can be read."""
        try:
            with safe_open(self._path(number), "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
                state: dict[str, Any] = _filled(json.loads(file.metadata()["state"]), tensors)
        except (OSError, SafetensorError):
            return None
        return state

    def keep(self, numbers: Collection[int]) -> None:
        """Remove the files of all plans but ``numbers``, and what a killed run left half written."""
        kept = {self._path(number) for number in numbers}
        for path in self.folder.glob("*"):
            if path not in kept:
                path.unlink(missing_ok=True)


def _outline(state: Any, tensors: dict[str, Tensor]) -> Any:
    """``state`` with a number in the place of each tensor, which goes to ``tensors`` under it."""
    if isinstance(state, Tensor):
        tensors[str(len(tensors))] = state.detach().cpu().contiguous()
        return {"tensor": str(len(tensors) - 1)}
    return {"of": {key: _outline(value, tensors) for key, value in state.items()}} if isinstance(state, Mapping) else {"is": state}


def _filled(outline: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    """Inverse of :func:`_outline`."""
    if "tensor" in outline:
        return tensors[outline["tensor"]]
    return {key: _filled(value, tensors) for key, value in outline["of"].items()} if "of" in outline else outline["is"]
