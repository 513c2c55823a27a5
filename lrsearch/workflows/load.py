"""A saved model, loaded."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from lrsearch.compress import artifact
from lrsearch.errors import ArtifactError
from lrsearch.spec.config import ModelConfig
from lrsearch.spec.parse import parse
from lrsearch.study.process_state import restoring_process_state
from lrsearch.task.architecture import NEEDS_BASE, build_architecture


@restoring_process_state()
def load(path: str | Path, base: nn.Module | None = None, *, merged: bool = False) -> nn.Module:
    """A compressed model from its folder, in eval mode.

    Args:
        path: a folder with ``plan.json`` and ``weights.safetensors``.
        base: a dense model of the same architecture; a model of timm is built as the folder says if None, other code never.
        merged: the plain dense model instead, L + S as one weight of each layer: as large as the dense one, its ``state_dict`` fits timm.

    Raises:
        ArtifactError: files are missing or damaged, or the base model is needed.
    """
    folder = Path(path)
    if base is None:
        _, about = artifact.read_plan(folder)
        source: Mapping[str, Any] | None = about.get("model")
        if not source:
            raise ArtifactError(
                "a model searched from Python needs its base", value="base=None", place=str(folder),
                remedy=NEEDS_BASE,
            )
        place = str(folder / artifact.PLAN)
        base = build_architecture(parse(ModelConfig, source, place), place)
    return artifact.load_merged(folder, base) if merged else artifact.load(folder, base)
