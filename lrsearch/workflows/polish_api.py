"""A chosen model's layers fitted once more, from Python and from a study file."""

from pathlib import Path

from torch import nn

from lrsearch.compress import artifact
from lrsearch.spec.config import StudyConfig
from lrsearch.study.evaluator import training_part
from lrsearch.task.base import Task
from lrsearch.task.data import Examples
from lrsearch.task.examples import Data
from lrsearch.task.sources import load_base, load_examples
from lrsearch.workflows.polish import PolishReport, polish_folder


def polish(
    path: str | Path, *, model: nn.Module, calibration: Data, train: Data | None = None, out: str | Path | None = None,
    batch: int = 100, device: str = "cpu", task: Task | None = None,
) -> PolishReport:
    """Fit a chosen model's layers once more, each against the inputs it really sees.

    For a plan you mean to use: it takes as long as tens of trials. The polished model is written
    only if a held-out quarter of the calibration data says that it is better.

    Args:
        path: the folder of a model that a study saved.
        model: the dense model it was made from; not changed.
        calibration: (input, label) pairs.
        train: what the model at ``path`` was finetuned on: the comparison leaves these out of the held-out examples.
        out: folder of the polished model; ``path`` with ``-polished`` added by default.
        batch: examples at a time when models are scored.
        device: where to compute.
        task: the study's, if it is a class of yours.

    Raises:
        LrsearchError: one of its kinds, for anything a caller can mend.
    """
    folder = Path(path)
    target = Path(out) if out else _beside(folder)
    trained_on = Examples(train, "train", None, model) if train is not None else None
    examples = Examples(calibration, "calibration", None, model)
    return polish_folder(folder, model, examples, target, batch=batch, device=device, trained_on=trained_on, task=task)


def polish_study(config: StudyConfig, path: Path, out: Path | None) -> PolishReport:
    """Polish a model of a study file's study; see :func:`polish`."""
    assert config.model is not None, "load_study checks this"
    assert config.data is not None, "load_study checks this"
    model = load_base(config.model)
    calibration = load_examples(config.data.calibration, "calibration", model)
    trained_on, proxy = _trained_on(config, path, model), config.proxy
    return polish_folder(path, model, calibration, out or _beside(path), proxy.held_out, proxy.batch, config.device, trained_on)


def _trained_on(config: StudyConfig, path: Path, model: nn.Module) -> Examples | None:
    """What the model at ``path`` was finetuned on: all training data in a recovery, what the finetunes use in a search."""
    about = artifact.read_plan(path)[1]
    if config.data is None or config.data.train is None or not about.get("score", {}).get("fidelity"):
        return None
    train = load_examples(config.data.train, "train", model)
    return train if "recovered" in about else training_part(train, config.proxy)


def _beside(folder: Path) -> Path:
    """Where a polished model goes; ``.`` has a name too."""
    whole = folder.resolve() if folder.name in ("", "..") else folder
    return whole.with_name(f"{whole.name}-polished")
