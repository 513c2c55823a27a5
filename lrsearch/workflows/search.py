"""The main job: search every layer's rank and sparsity."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from lrsearch.search.optuna_samplers import OptunaSampler, sampler_in
from lrsearch.spec.cost import Budget
from lrsearch.spec.progress import Lines, Progress
from lrsearch.spec.registry import load_plugins
from lrsearch.spec.shipped import plugin_names
from lrsearch.spec.space import Space
from lrsearch.study.loop import Callback
from lrsearch.study.opening import open_search
from lrsearch.study.process_state import restoring_process_state
from lrsearch.study.study_folder import StudyFolder
from lrsearch.study.workers import working
from lrsearch.task.base import Task
from lrsearch.task.examples import Data
from lrsearch.workflows.materials import Materials, Study, model_or_study, settings_of
from lrsearch.workflows.result import Result
from lrsearch.workflows.steps.log import log_settings, log_to


@restoring_process_state()
def search(
    model: nn.Module | Study, *, calibration: Data | None = None, score: Data | None = None, train: Data | None = None,
    budget: Budget | None = None, space: Space | str | None = None, out: str | Path | None = None, progress: Progress | None = None,
    task: Task | type[Task] | str | Mapping[str, str] = "auto", callbacks: Sequence[Callback] = (),
    storage: str | Mapping[str, Any] | None = None, artifacts: str | None = None, **settings: Any,
) -> Result:
    """Search every layer's rank and sparsity under a budget; the same ``out`` again resumes.

    Args:
        model: the dense model, which is not changed; or a study file, which names model and data.
        calibration: data for the layers' statistics and BatchNorm: some hundred examples. Data are inputs, or pairs ``(inputs,
            labels)``, as tensors or arrays; or a Dataset, a list of examples, or a DataLoader. Inputs are one tensor, a tuple (arguments
            by position) or a dict (by keyword).
        score: data that rank the candidates, none of which is among the others.
        train: data to finetune on, if ``proxy={"finetune": {"steps": …}}`` asks for it.
        budget: upper limits, such as ``lrsearch.Budget(params=0.3)``; none by default, which gives the whole front.
        space: a :class:`Space`, or the name or path of a space file.
        out: study folder, ``runs/<name>`` by default.
        progress: told how far the study is; lines on stdout by default, ``lrsearch.Progress()`` is silent.
        task: what the outputs mean: ``auto`` looks at outputs and labels; a name; several outputs → a name for each; or a
            :class:`lrsearch.Task`, class or instance.
        storage: where the trials are, for workers on several machines: ``postgresql://…``, ``mysql://…`` or ``journal:///PATH``. The study
            is known there by its ``name``. By default they are in ``out``.
        artifacts: where profile, latency table, losses, paused finetunes and models are for all of them: a folder that all have, or
            ``s3://BUCKET/PREFIX``.
        callbacks: each called as ``f(study, trial)`` with the Optuna study and a finished trial, in the main thread, between trials.
        **settings: further keys of a study file: ``name``, ``output``, ``objectives``, ``search={"trials": 60}``, ``proxy``,
            ``weights={"values": "int8"}``, ``latency={"backend": "onnxruntime"}``, ``deploy``, ``device``, ``plugins``.
            ``search={"sampler": …}`` may also be a sampler of Optuna's.

    Raises:
        LrsearchError: one of its kinds, for anything a caller can mend.

    Example:
        >>> result = lrsearch.search(model, calibration=a, score=b, budget=lrsearch.Budget(params=0.3))
        >>> result.front, result.plot(), result.load(0)
    """
    network, study = model_or_study(model)
    if isinstance(storage, Mapping):  # the former name of weights
        settings, storage = {**settings, "storage": storage}, None
    settings, sampler = sampler_in({**settings, **({"task": task} if isinstance(task, str | Mapping) and task != "auto" else {})})
    load_plugins(plugin_names(settings.get("plugins"), "lrsearch.search"))
    config, own = settings_of(study, settings, "lrsearch.search", budget, space), None if isinstance(task, str | Mapping) else task
    roles = ("calibration", "score", *(("train",) if config.proxy.finetune.steps else ()))
    materials = Materials.of(network, config, *roles, calibration=calibration, score=score, train=train, task=own)
    place = Path(out or f"runs/{config.name}")
    return _run(materials, place, Lines() if progress is None else progress, sampler, callbacks, storage, artifacts)


def _run(
    materials: Materials, out: Path, progress: Progress, sampler: OptunaSampler | None, callbacks: Sequence[Callback], storage: str | None,
    artifacts: str | None,
) -> Result:
    model, config, calibration, scoring = materials.model, materials.config, materials.calibration, materials.score
    with working(out, progress.note, storage, config.name, artifacts) as workers, log_to(StudyFolder(out).log):
        if workers.others:
            progress.note("another search works on this study; this one joins it")
        log_settings(config)
        train = materials.sets.get("train")
        with nullcontext() if workers.far else workers.turn:  # so that workers beside this one wait for its profile
            opened = open_search(model, calibration, scoring, train, config, out, progress, workers, materials.task, sampler)
        opened.callbacks = tuple(callbacks)

        def result() -> Result:
            baseline, dense = opened.evaluator.baseline, opened.proposals.decoder.costs.dense
            evaluator = opened.evaluator
            task, chance = evaluator.task, evaluator.chance
            return Result(out, opened.records, dense, baseline, config, model, scoring, task, chance, calibration, task.unit)

        try:
            opened.run()
        finally:
            if opened.records:
                workers.turn.do(lambda: result().write())
        return result()
