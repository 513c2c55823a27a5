"""Models handed over: exported and loaded."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from lrsearch.compress import artifact
from lrsearch.errors import ArtifactError
from lrsearch.report.certificate import Certificate
from lrsearch.spec.config import ModelConfig, StudyConfig
from lrsearch.spec.parse import parse
from lrsearch.spec.progress import Progress
from lrsearch.study.front_conditions import choose
from lrsearch.task.architecture import build_architecture
from lrsearch.task.sources import load_base, load_examples
from lrsearch.workflows.export import export_picked, origin_of, read_front


def export_study(
    config: StudyConfig, study: Path, out: Path, pick: str = "", index: int | None = None, progress: Progress | None = None,
) -> Certificate:
    """Export a member of a study's front, verified by a fresh process.

    Args:
        config: of the study.
        study: its folder.
        out: where to.
        pick: conditions over the columns of the front; the best-scoring member that satisfies them and whose limits hold when
            it is measured again. All members satisfy an empty one.
        index: the row of the front instead.
        progress: told which members were refused, and why.

    Raises:
        LrsearchError: one of its kinds, for anything a caller can mend.
    """
    assert config.model is not None, "load_study checks this"
    assert config.data is not None, "load_study checks this"
    front = read_front(study, config)
    rows = choose(front, config.objectives[0], pick, index)
    base = load_base(config.model)
    sample = load_examples(config.data.score, "score", base).sample()
    origin = replace(origin_of(study, config, base, sample), pick=pick)
    return export_picked(study, front, rows, out, base, sample, origin, progress or Progress())


def load(path: str | Path, base: nn.Module | None = None) -> nn.Module:
    """A compressed model from its folder, in eval mode.

    Args:
        path: a folder with ``plan.json`` and ``weights.safetensors``.
        base: a dense model of the same architecture; a model of timm is built as the folder says if None, other code never.

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
                remedy="Pass base=, a dense model of the same architecture.",
            )
        place = str(folder / artifact.PLAN)
        base = build_architecture(parse(ModelConfig, source, place), place)
    return artifact.load(folder, base)
