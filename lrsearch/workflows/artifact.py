"""Models handed over: exported, verified, loaded."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from lrsearch.compress import artifact
from lrsearch.errors import ArtifactError, LrsearchError
from lrsearch.report.certificate import CERTIFICATE, Certificate, Origin
from lrsearch.spec.config import ModelConfig, StudyConfig
from lrsearch.spec.parse import parse
from lrsearch.spec.progress import Progress
from lrsearch.study.pick import choose
from lrsearch.task.data import Examples
from lrsearch.task.sources import load_base, load_examples
from lrsearch.workflows.export import export_picked, origin_of, read_front
from lrsearch.workflows.search import Data
from lrsearch.workflows.verify import verify_folder


def verify(path: str | Path, *, model: nn.Module | None = None, score: Data | None = None, **settings: Any) -> Certificate:
    """Load an exported or saved model anew, and check all that was claimed of it; what cannot be checked here is named.

    Args:
        path: a folder that ``lrsearch export`` or a study wrote.
        model: the dense model; built as the study file says if None.
        score: (input, label) pairs; those of the study file if None.
        **settings: keys of a study file laid over those of the study, such as ``budget``, ``latency`` and ``proxy``.

    Raises:
        LrsearchError: one of its kinds, for anything a caller can mend.
    """
    folder = Path(path)
    origin = Certificate.load(folder).origin if (folder / CERTIFICATE).exists() else _origin_of_saved(folder)
    config = parse(StudyConfig, {**origin.config.model_dump(mode="json"), **settings}, "verify")
    if model is None:
        if config.model is None:
            raise _needs_base(folder, "model")
        model = load_base(config.model)
    scoring, why = Examples(score, "score") if score is not None else None, "no score data were given"
    if scoring is None and config.data:
        try:
            scoring = load_examples(config.data.score, "score", model)
        except LrsearchError as error:
            if "data" in settings:
                raise
            why = str(error)
    return verify_folder(folder, model, replace(origin, config=config), scoring, why)


def _origin_of_saved(folder: Path) -> Origin:
    """What a study's own folder says: where the model comes from."""
    _, about = artifact.read_plan(folder)
    return Origin(parse(StudyConfig, {"name": folder.resolve().name, "model": about.get("model")}, str(folder / artifact.PLAN)))


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
    sample = next(load_examples(config.data.score, "score", base).batches(2))[0]
    origin = replace(origin_of(study, config, base, sample), pick=pick)
    return export_picked(study, front, rows, out, base, sample, origin, progress or Progress())


def load(path: str | Path, base: nn.Module | None = None) -> nn.Module:
    """A compressed model from its folder, in eval mode.

    Args:
        path: a folder with ``plan.json`` and ``weights.safetensors``.
        base: a dense model of the same architecture; built as the study file says if None.

    Raises:
        ArtifactError: files are missing or damaged, or the base model is needed.
    """
    folder = Path(path)
    if base is None:
        _, about = artifact.read_plan(folder)
        source: Mapping[str, Any] | None = about.get("model")
        if not source:
            raise _needs_base(folder, "base")
        config = parse(ModelConfig, source, str(folder / artifact.PLAN))
        base = load_base(config.model_copy(update={"pretrained": False, "checkpoint": None}))
    return artifact.load(folder, base)


def _needs_base(folder: Path, argument: str) -> ArtifactError:
    return ArtifactError(
        "a model searched from Python needs its base", value=f"{argument}=None", place=str(folder),
        remedy=f"Pass {argument}=, a dense model of the same architecture.",
    )
