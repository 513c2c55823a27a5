"""The main job, from Python and from a study file."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from lrsearch.compress import artifact
from lrsearch.errors import ArtifactError, ConfigError, LrsearchError
from lrsearch.proxy.data import Examples, Labelled
from lrsearch.proxy.repolish import PolishReport, polish_folder
from lrsearch.proxy.sources import load_base, load_examples
from lrsearch.report.certificate import CERTIFICATE, Certificate, Origin
from lrsearch.report.export import export_picked, origin_of, read_front
from lrsearch.report.pick import choose
from lrsearch.report.verify import verify_folder
from lrsearch.result import Result
from lrsearch.search.progress import Progress
from lrsearch.search.session import lock, open_search
from lrsearch.shipped import load_space
from lrsearch.spec.config import ModelConfig, StudyConfig, parse
from lrsearch.spec.cost import Budget
from lrsearch.spec.space import Space

Data = Labelled | tuple[Tensor, Tensor]


def search(
    model: nn.Module, *, calibration: Data, score: Data, train: Data | None = None, budget: Budget | None = None,
    space: Space | str | None = None, out: str | Path | None = None, progress: Progress | None = None, **settings: Any,
) -> Result:
    """Search every layer's rank and sparsity under a budget; the same ``out`` again resumes.

    Args:
        model: the dense model, returning logits (n, classes); it is not changed.
        calibration: (input, label) pairs for the layers' statistics and BatchNorm.
        score: pairs that rank the candidates.
        train: pairs to finetune on, if ``proxy={"finetune": {"steps": …}}`` asks for it.
        budget: upper limits; none by default, which gives the whole front.
        space: a :class:`Space`, or the name or path of a space file.
        out: study folder, ``runs/<name>`` by default.
        progress: told how far the study is.
        **settings: further keys of a study file: ``name``, ``objectives``, ``search``, ``proxy``, ``storage``, ``device``.

    Raises:
        LrsearchError: one of its kinds, for anything a caller can mend.

    Example:
        >>> result = lrsearch.search(model, calibration=a, score=b, budget=lrsearch.Budget(params=0.3))
        >>> result.front, result.plot(), result.load(0)
    """
    data: dict[str, Any] = {**settings, "budget": dict(budget.items()) if budget else {}}
    if space is not None:
        data["space"] = load_space(space) if isinstance(space, str) else space
    config = parse(StudyConfig, data, "lrsearch.search")
    sets = Examples(calibration, "calibration"), Examples(score, "score"), Examples(train, "train") if train is not None else None
    return _run(model, *sets, config, Path(out or f"runs/{config.name}"), progress or Progress())


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
    config: StudyConfig, out: Path, progress: Progress,
) -> Result:
    with lock(out), _log_to(out / "search.log"):
        opened = open_search(model, calibration, scoring, train, config, out, progress)

        def result() -> Result:
            baseline, dense = opened.evaluator.baseline, opened.proposals.decoder.costs.dense
            return Result(out, opened.records, dense, baseline, config, model, scoring)

        try:
            opened.run()
        finally:
            if opened.records:
                result().write()
        return result()


class _log_to:
    """While open, the package's log goes to a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        self.handler = logging.FileHandler(self.path)
        self.handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger = logging.getLogger("lrsearch")
        logger.setLevel(logging.INFO)
        logger.addHandler(self.handler)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            logging.getLogger("lrsearch").error("%s", error or kind)
        logging.getLogger("lrsearch").removeHandler(self.handler)
        self.handler.close()


def polish(
    path: str | Path, *, model: nn.Module, calibration: Data, out: str | Path | None = None, batch: int = 100, device: str = "cpu",
) -> PolishReport:
    """Fit a chosen model's layers once more, each against the inputs it really sees.

    For a plan you mean to use: it takes as long as tens of trials. The polished model is written
    only if a held-out quarter of the calibration data says that it is better.

    Args:
        path: the folder of a model that a study saved.
        model: the dense model it was made from; not changed.
        calibration: (input, label) pairs.
        out: folder of the polished model; ``path`` with ``-polished`` added by default.
        batch: examples at a time when models are scored.
        device: where to compute.

    Raises:
        LrsearchError: one of its kinds, for anything a caller can mend.
    """
    folder = Path(path)
    target = Path(out) if out else _beside(folder)
    return polish_folder(folder, model, Examples(calibration, "calibration"), target, batch=batch, device=device)


def polish_study(config: StudyConfig, path: Path, out: Path | None) -> PolishReport:
    """Polish a model of a study file's study; see :func:`polish`."""
    assert config.model is not None, "load_study checks this"
    assert config.data is not None, "load_study checks this"
    model = load_base(config.model)
    calibration = load_examples(config.data.calibration, "calibration", model)
    return polish_folder(path, model, calibration, out or _beside(path), config.proxy.held_out, config.proxy.batch, config.device)


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


def _needs_base(folder: Path, argument: str) -> ArtifactError:
    return ArtifactError(
        "a model searched from Python needs its base", value=f"{argument}=None", place=str(folder),
        remedy=f"Pass {argument}=, a dense model of the same architecture.",
    )


def _beside(folder: Path) -> Path:
    """Where a polished model goes; ``.`` has a name too."""
    whole = folder.resolve() if folder.name in ("", "..") else folder
    return whole.with_name(f"{whole.name}-polished")


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
