"""How far the rankings of a study's rungs can be trusted."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from torch import nn

from lrsearch.errors import ConfigError
from lrsearch.report.fidelity import LEAST, axis_of, fidelity_figure, fidelity_frame, taus
from lrsearch.spec.atomic import write_whole
from lrsearch.spec.config import StudyConfig
from lrsearch.spec.progress import Progress
from lrsearch.study.fidelity import Comparison
from lrsearch.study.opening import open_search
from lrsearch.study.study_folder import StudyFolder
from lrsearch.study.surroundings import surroundings
from lrsearch.study.workers import alone
from lrsearch.task.base import Task
from lrsearch.task.examples import Data
from lrsearch.workflows.materials import Materials, Study, study_in
from lrsearch.workflows.result import renew

LONGER, LONG = 4, 200  # steps of the long finetune: times the study's own, or as many where it has none


@dataclass(frozen=True)
class Fidelity:
    """What a comparison found.

    Attributes:
        frame: a row per plan; see :func:`fidelity_frame`.
        taus: a row per rung; see :func:`taus`.
        steps: finetune steps at each rung, 0 first.
        long: steps of the long finetune.
        page: the figure.
    """

    frame: pd.DataFrame
    taus: pd.DataFrame
    steps: tuple[int, ...]
    long: int
    page: Path


@surroundings()
def fidelity(
    path: str | Path, *, study: Study | None = None, model: nn.Module | None = None, calibration: Data | None = None,
    score: Data | None = None, train: Data | None = None, plans: int = 16, long: int | None = None, device: str = "cpu",
    metric: str = "auto", task: Task | None = None, progress: Progress | None = None,
) -> Fidelity:
    """Finetune plans of a finished study at length and compare with their scores at every rung; the same call again resumes.

    Args:
        path: the study folder, into which rows and figure go.
        study: its study file, if the folder may not name what is code: it names model, data and ``device``.
        model: the dense model instead; not changed.
        calibration: as for the search, with ``model``.
        score: as for the search, with ``model``.
        train: as for the search, with ``model``.
        plans: how many, evenly chosen along the first cost among the objectives.
        long: steps of the long finetune; four times the study's, or 200, if None.
        device: where to compute, with ``model``.
        metric: the study's ``proxy.metric``, if that is a function of yours, with ``model``.
        task: the study's, if it is a class of yours.
        progress: told of every plan.

    Raises:
        LrsearchError: one of its kinds, for anything a caller can mend.

    Example:
        >>> lrsearch.fidelity("runs/mine", model=model, calibration=a, score=b, train=c, plans=16).taus
    """
    folder = Path(path)
    config = study_in(folder, study, model, "lrsearch.fidelity", metric)
    if model is not None:
        config = config.model_copy(update={"device": device})
    ends = config.proxy.finetune.ends
    steps = long if long is not None else LONGER * ends[-1] if ends else LONG
    _refuse_short(config, plans, steps)
    if model is None and (config.data is None or config.data.train is None):
        raise ConfigError("a long finetune needs training data", value="nothing", place="data.train", remedy="Add data.train.")
    materials = Materials.of(model, config, "calibration", "score", "train", calibration=calibration, score=score, train=train, task=task)
    return _compared(folder, materials, plans, steps, progress or Progress())


def _compared(folder: Path, materials: Materials, plans: int, steps: int, progress: Progress) -> Fidelity:
    config, train, page = materials.config, materials.train, StudyFolder(folder).fidelity_page
    with alone(folder):
        search = open_search(materials.model, materials.calibration, materials.score, train, config, folder, progress, None, materials.task)
        rows = Comparison(search, train, steps, progress).run(plans)
        frame = fidelity_frame(rows, config.objectives, search.proposals.dense)
        write_whole(page, fidelity_figure(frame, f"{config.name}: rungs against {steps} steps", axis_of(config.objectives)).to_html())
    renew(folder)
    return Fidelity(frame, taus(frame), (0, *config.proxy.finetune.ends), steps, page)


def _refuse_short(config: StudyConfig, plans: int, steps: int) -> None:
    last = config.proxy.finetune.steps
    if plans < LEAST:
        raise ConfigError(f"must be at least {LEAST}", value=plans, place="--plans", remedy="16 or more tell something.")
    if steps <= last:
        rule = f"must be above {last}, the steps of the last rung"
        raise ConfigError(rule, value=steps, place="--long", remedy="Give several times as many.")
