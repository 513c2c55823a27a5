"""A training's state on disk: written whole or not at all, and read back only by what it belongs to."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lrsearch.errors import StudyError
from lrsearch.spec.atomic import write_whole

FORMAT = 2  # of a state, raised when what is in it changes


def save_state(path: Path, identity: str, state: Mapping[str, Any]) -> None:
    """Replace what is at ``path`` by ``state``, tensors and numbers."""
    write_whole(path, state_bytes(identity, state))


def state_bytes(identity: str, state: Mapping[str, Any]) -> bytes:
    """``state`` as bytes that :func:`load_state` reads."""
    buffer = io.BytesIO()
    torch.save({"identity": identity, "format": FORMAT, **state}, buffer)
    return buffer.getvalue()


def load_state(path: Path, identity: str) -> dict[str, Any]:
    """What :func:`save_state` wrote, on the CPU.

    Raises:
        StudyError: the file is damaged, of another version of this package, or of other settings, data or another model than
            ``identity`` names.
    """
    remedy = f"Restore what it was begun with, or remove {path.name} to begin anew."
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        found, form = state.pop("identity"), state.pop("format", 1)
    except Exception as error:
        raise StudyError("must be a training's state", value=type(error).__name__, place=str(path), remedy=remedy) from error
    if form != FORMAT:
        rule = "an unfinished training must go on with the version of lrsearch that began it"
        raise StudyError(rule, value=f"format {form}, not {FORMAT}", place=str(path), remedy=remedy)
    if found != identity:
        rule = "an unfinished training must go on with its settings, data and model"
        raise StudyError(rule, value=f"{identity}, begun as {found}", place=str(path), remedy=remedy)
    return state
