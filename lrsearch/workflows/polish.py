"""A chosen model's layers fitted once more."""

from pathlib import Path

from torch import nn

from lrsearch.compress import artifact
from lrsearch.spec.config import StudyConfig
from lrsearch.study.parts import training_part
from lrsearch.study.process_state import restoring_process_state
from lrsearch.task.base import Task
from lrsearch.task.data import Examples
from lrsearch.task.examples import Data
from lrsearch.workflows.from_folder import config_alone
from lrsearch.workflows.materials import Materials, Study, refuse_both, settings_of
from lrsearch.workflows.steps.polish_folder import PolishReport, polish_folder


@restoring_process_state()
def polish(
    path: str | Path, *, study: Study | None = None, model: nn.Module | None = None, calibration: Data | None = None,
    train: Data | None = None, out: str | Path | None = None, batch: int = 100, device: str = "cpu",
    task: Task | None = None,
) -> PolishReport:
    """Fit a chosen model's layers once more, each against the inputs it really sees.

    For a plan you mean to use: it takes as long as tens of trials. The polished model is written
    only if held-out calibration data, a quarter or what the study says, tell that it is better.

    Args:
        path: the folder of a model that a study saved.
        study: the study file, which names model and data, ``proxy.batch``, ``proxy.held_out`` and ``device``; what the study folder
            says by default.
        model: the dense model instead, which the folder's was made from; not changed.
        calibration: (input, label) pairs, with ``model``.
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
    refuse_both(study, model, "lrsearch.polish")
    if study is None and model is None:
        artifact.read_plan(folder)  # else the study would be looked for two folders above something else
        config = study = config_alone(folder.parent.parent)
    elif study is None:
        settings = {"proxy": {"batch": batch}, "device": device}
        config = settings_of(None, settings, "lrsearch.polish")
    else:
        config = settings_of(study, {}, "lrsearch.polish")
    materials = Materials.of(model, config, "calibration", "train", calibration=calibration, train=train)
    trained_on = materials.sets.get("train") if study is None else _trained_on(config, folder, materials)
    proxy = config.proxy
    return polish_folder(
        folder, materials.model, materials.calibration, target, proxy.held_out, proxy.batch, config.device, trained_on, task,
    )


def _trained_on(config: StudyConfig, path: Path, materials: Materials) -> Examples | None:
    """What the model at ``path`` was finetuned on: all training data in a recovery, what the finetunes use in a search."""
    about = artifact.read_plan(path)[1]
    if "train" not in materials.sets or not about.get("score", {}).get("fidelity"):
        return None
    return materials.train if "recovered" in about else training_part(materials.train, config.proxy)


def _beside(folder: Path) -> Path:
    """Where a polished model goes; ``.`` has a name too."""
    whole = folder.resolve() if folder.name in ("", "..") else folder
    return whole.with_name(f"{whole.name}-polished")
