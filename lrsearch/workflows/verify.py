"""Models verified: what was claimed of a folder is found out again, with the code that the caller names and no other."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from torch import nn

from lrsearch.compress import artifact
from lrsearch.errors import ArtifactError, LrsearchError
from lrsearch.report.certificate import CERTIFICATE, Certificate, Origin
from lrsearch.spec.config import LONGEST_NAME, ModelConfig, SourceConfig, StudyConfig
from lrsearch.spec.parse import parse
from lrsearch.spec.registry import resolve
from lrsearch.spec.shipped import lay_over, load_study
from lrsearch.spec.space import Strict
from lrsearch.study.process_state import restoring_process_state
from lrsearch.task.architecture import build_architecture
from lrsearch.task.base import Task
from lrsearch.task.data import Examples
from lrsearch.task.examples import Data
from lrsearch.task.several import named_task
from lrsearch.task.sources import load_base, load_examples, load_metric
from lrsearch.task.stored import task_from_dict
from lrsearch.workflows.materials import Study, supported
from lrsearch.workflows.steps.verify_folder import verified_folder, verify_folder

NEEDS_MODEL = "needs the model, give --study"
NEEDS_DATA = "needs the score data, give --study"
NEEDS_METRIC = "needs the metric, give --study"


class NamedData(Strict):
    """What the caller says of the data; only ``score`` is read."""

    calibration: SourceConfig | None = None
    score: SourceConfig | None = None
    train: SourceConfig | None = None


class Named(Strict):
    """Model, data and metric in the caller's own words: what may run. Nothing of it comes from the folder."""

    model: ModelConfig | None = None
    data: NamedData | None = None
    metric: str | None = None
    task: str | None = None

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> "Named":
        """Those among keys of a study file.

        Raises:
            ConfigError: a key is unknown or wrong.
        """
        proxy = said.get("proxy")
        metric = proxy.get("metric") if isinstance(proxy, Mapping) else None
        task = t if isinstance(t := said.get("task"), str) and ":" in t else None
        return parse(cls, {**{key: said[key] for key in ("model", "data") if key in said}, "metric": metric, "task": task}, "verify")


CODE = ("model", "data")  # keys whose overrides are the user's own words, never laid over a folder's


@restoring_process_state()
def verify(
    path: str | Path, *, model: nn.Module | ModelConfig | None = None, score: Data | None = None, study: Study | None = None,
    overrides: Sequence[str] = (), task: Task | None = None, **settings: Any,
) -> Certificate:
    """Load an exported or saved model anew, and check all that was claimed of it; what cannot be checked here is named.

    No code runs that the folder names. Without ``model`` and ``study``, files, sizes, ONNX and its latency are checked, and
    what can be counted on a model of timm.

    Args:
        path: a folder that ``lrsearch export`` or a study wrote.
        model: the dense model, or the name of one; built as ``study`` says if None.
        score: (input, label) pairs; those of ``study`` if None.
        study: a study file, or the name of a shipped one, used instead of what the folder says of its study.
        overrides: ``key.key=value``, laid over the study's settings; those of ``model`` and ``data`` over nothing that the folder says.
        task: the study's, if it is a class of yours.
        **settings: keys of a study file laid over those of the study, such as ``budget``, ``latency``, ``proxy`` and ``data``.

    Raises:
        LrsearchError: one of its kinds, for anything a caller can mend.
    """
    folder = Path(path)
    saved = (folder / artifact.PLAN).exists() and not (folder / CERTIFICATE).exists()  # by a study, not exported
    origin = _origin_of_saved(folder) if saved else Certificate.load(folder).origin
    given = {key: value.model_dump(mode="json") if isinstance(value, BaseModel) else value for key, value in settings.items()}
    if study is not None:
        own = study if isinstance(study, StudyConfig) else load_study(str(study), overrides)
        said = claimed = {**own.model_dump(mode="json"), **given}
    else:
        named = {"model": model.model_dump(mode="json")} if isinstance(model, ModelConfig) else {}
        said = lay_over({**named, **given}, overrides)
        claims = [o for o in overrides if o.partition("=")[0].partition(".")[0] not in CODE]
        claimed = lay_over({**origin.config.model_dump(mode="json"), **given}, claims)
    config = parse(StudyConfig, claimed, "verify")
    must_read = "data" in settings or any(override.startswith("data") for override in overrides)
    network = supported(model) if isinstance(model, nn.Module) else None
    return verify_named(folder, replace(origin, config=config), Named.of(said), network, score, must_read, task)


def verify_named(
    folder: Path, origin: Origin, named: Named, model: nn.Module | None = None, score: Data | None = None, must_read: bool = False,
    task: Task | None = None,
) -> Certificate:
    """:func:`verify` with what the caller names.

    Args:
        folder: a folder that ``lrsearch export`` or a study wrote.
        origin: what the folder claims, under the configuration to check.
        named: code that may run.
        model: the dense model.
        score: (input, label) pairs.
        task: the study's.
        must_read: whether data that cannot be read are an error, instead of not checked.

    Raises:
        LrsearchError: one of its kinds, for anything a caller can mend.
    """
    verified_folder(folder, origin)
    why, values = NEEDS_DATA, True
    if model is None and named.model:
        model = supported(load_base(named.model))
    elif model is None:
        (model, why), values = _architecture(folder, origin.config.model, bool(origin.inputs)), False
    scoring = Examples(score, "score", None, model) if score is not None and values else None
    source = named.data.score if named.data else None
    if scoring is None and source and model is not None and values:
        try:
            scoring = load_examples(source, "score", model)
        except LrsearchError as error:
            if must_read:
                raise
            why = str(error)
    return verify_folder(folder, model, origin, scoring, _task(folder, named, origin, task), why, NEEDS_METRIC, values)


def _architecture(folder: Path, claimed: ModelConfig | None, runnable: bool) -> tuple[nn.Module | None, str]:
    """A model of timm with the layers of the one that the folder names, if that may be built; and what to say of the rest."""
    if claimed is None or claimed.timm is None:
        return None, NEEDS_MODEL
    if not runnable:  # nothing to run it on
        return None, NEEDS_MODEL
    try:
        return build_architecture(claimed, str(folder)), NEEDS_MODEL
    except ArtifactError as error:
        return None, f"{NEEDS_MODEL} ({error.place}: {error.rule})"


def _task(folder: Path, named: Named, origin: Origin, given: Task | None) -> Task | None:
    """The task of the study, if lrsearch or the caller has it; its metric, if that is the task's own or the caller names it."""
    _, about = artifact.read_plan(folder)
    task = given or task_from_dict(about.get("task"))
    if task is None and named.task:
        task = named_task(named.task, origin.config.output, resolve)
    if task is None:
        return None
    if named.metric and (metric := load_metric(named.metric)):
        return task.measured_by(metric)
    return task if origin.config.proxy.metric == "auto" or given else task.measured_by(None)


def _origin_of_saved(folder: Path) -> Origin:
    """What a study's own folder says: where the model comes from."""
    _, about = artifact.read_plan(folder)
    name = folder.resolve().name[:LONGEST_NAME] or "study"
    return Origin(parse(StudyConfig, {"name": name, "model": about.get("model")}, str(folder / artifact.PLAN)))
