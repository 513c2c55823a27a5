"""The main job, from Python and from a study file."""

from pathlib import Path
from typing import Any

from torch import nn

from lrsearch.errors import ConfigError
from lrsearch.spec.config import StudyConfig
from lrsearch.spec.cost import Budget
from lrsearch.spec.parse import parse
from lrsearch.spec.progress import Progress
from lrsearch.spec.shipped import load_space
from lrsearch.spec.space import Space
from lrsearch.study.opening import open_search
from lrsearch.study.study_folder import StudyFolder
from lrsearch.study.workers import working
from lrsearch.task.base import Task
from lrsearch.task.data import Examples
from lrsearch.task.examples import Data
from lrsearch.task.sources import load_base, load_examples
from lrsearch.workflows.log import log_to
from lrsearch.workflows.result import Result


def search(
    model: nn.Module, *, calibration: Data, score: Data, train: Data | None = None, budget: Budget | None = None,
    space: Space | str | None = None, out: str | Path | None = None, progress: Progress | None = None,
    task: Task | type[Task] | str = "auto", **settings: Any,
) -> Result:
    """Search every layer's rank and sparsity under a budget; the same ``out`` again resumes.

    Args:
        model: the dense model; it is not changed.
        calibration: for the layers' statistics and BatchNorm; see :mod:`lrsearch.task.examples` for what data may be.
        score: data that rank the candidates.
        train: data to finetune on, if ``proxy={"finetune": {"steps": …}}`` asks for it.
        budget: upper limits; none by default, which gives the whole front.
        space: a :class:`Space`, or the name or path of a space file.
        out: study folder, ``runs/<name>`` by default.
        progress: told how far the study is.
        task: what the outputs mean: ``auto`` looks at outputs and labels; a name; or a :class:`lrsearch.Task`, class or instance.
        **settings: further keys of a study file: ``name``, ``output``, ``objectives``, ``search``, ``proxy``, ``weights``, ``device``.

    Raises:
        LrsearchError: one of its kinds, for anything a caller can mend.

    Example:
        >>> result = lrsearch.search(model, calibration=a, score=b, budget=lrsearch.Budget(params=0.3))
        >>> result.front, result.plot(), result.load(0)
    """
    data: dict[str, Any] = {**settings, "budget": dict(budget.items()) if budget else {}}
    if space is not None:
        data["space"] = load_space(space) if isinstance(space, str) else space
    if isinstance(task, str):
        data["task"] = task
    config = parse(StudyConfig, data, "lrsearch.search")
    given = {"calibration": calibration, "score": score, "train": train}
    sets = [Examples(each, role, None, model) for role, each in given.items() if each is not None]
    own = None if isinstance(task, str) else task
    folder = Path(out or f"runs/{config.name}")
    return _run(model, sets[0], sets[1], sets[2] if train is not None else None, config, folder, progress or Progress(), own)


def run_study(config: StudyConfig, out: Path, progress: Progress) -> Result:
    """Run a study file's study in ``out``; see :func:`search`."""
    if config.model is None or config.data is None:
        raise ConfigError("a study needs model and data", value="nothing", place=config.name, remedy="Add them, or call search.")
    model = load_base(config.model)
    sources = config.data
    train = load_examples(sources.train, "train", model) if sources.train and config.proxy.finetune.steps else None
    calibration, score = (load_examples(s, r, model) for s, r in ((sources.calibration, "calibration"), (sources.score, "score")))
    return _run(model, calibration, score, train, config, out, progress)


def _run(
    model: nn.Module, calibration: Examples, scoring: Examples, train: Examples | None,
    config: StudyConfig, out: Path, progress: Progress, task: Task | type[Task] | None = None,
) -> Result:
    with working(out, progress.note) as workers, log_to(StudyFolder(out).log):
        if workers.others:
            progress.note("another search works on this study; this one joins it")
        with workers.turn:
            opened = open_search(model, calibration, scoring, train, config, out, progress, workers, task)

        def result() -> Result:
            baseline, dense = opened.evaluator.baseline, opened.proposals.decoder.costs.dense
            return Result(out, opened.records, dense, baseline, config, model, scoring, opened.evaluator.task)

        try:
            opened.run()
        finally:
            if opened.records:
                with workers.turn:
                    result().write()
        return result()
