"""A searched study file → how far its rungs' rankings can be trusted, kept in the study folder."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from lrsearch.errors import ConfigError
from lrsearch.report.fidelity import fidelity_figure, fidelity_frame, taus
from lrsearch.spec.atomic import write_whole
from lrsearch.spec.config import StudyConfig
from lrsearch.spec.progress import Progress
from lrsearch.study.fidelity import Comparison
from lrsearch.study.identity import refuse_other_study
from lrsearch.study.opening import open_search
from lrsearch.study.study_folder import StudyFolder
from lrsearch.study.workers import alone
from lrsearch.task.sources import load_base, load_examples

LONGER, LONG = 4, 200


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


def compare_study(config: StudyConfig, study: Path, plans: int = 16, long: int | None = None, progress: Progress | None = None) -> Fidelity:
    """Finetune plans of a finished study at length and compare with their scores at every rung; the same call again resumes.

    Args:
        config: of the study.
        study: its folder, into which rows and figure go.
        plans: how many, evenly chosen along the first cost among the objectives.
        long: steps of the long finetune; four times the study's, or 200, if None.
        progress: told of every plan.

    Raises:
        LrsearchError: one of its kinds, for anything a caller can mend.
    """
    assert config.model is not None, "load_study checks this"
    assert config.data is not None, "load_study checks this"
    refuse_other_study(StudyFolder(study), config)
    ends = config.proxy.finetune.ends
    steps = long if long is not None else LONGER * ends[-1] if ends else LONG
    _refuse_short(config, plans, steps)
    model, sources = load_base(config.model), config.data
    assert sources.train is not None
    calibration, score = (load_examples(s, r, model) for s, r in ((sources.calibration, "calibration"), (sources.score, "score")))
    train, progress = load_examples(sources.train, "train", model), progress or Progress()
    page = StudyFolder(study).fidelity_page
    with alone(study):
        search = open_search(model, calibration, score, train, config, study, progress)
        rows = Comparison(search, train, steps, progress).run(plans)
        frame = fidelity_frame(rows, config.objectives, search.proposals.dense)
        axis = "log10 KL" if config.objectives[0] == "kl" else "-metric"
        html = fidelity_figure(frame, f"{config.name}: rungs against {steps} steps", axis).to_html()
        write_whole(page, html)
    return Fidelity(frame, taus(frame), (0, *ends), steps, page)


def _refuse_short(config: StudyConfig, plans: int, steps: int) -> None:
    last = config.proxy.finetune.steps
    if plans < 4:
        raise ConfigError("must be at least 4", value=plans, place="--plans", remedy="16 or more tell something.")
    if steps <= last:
        rule = f"must be above {last}, the steps of the last rung"
        raise ConfigError(rule, value=steps, place="--long", remedy="Give several times as many.")
    if config.data is None or config.data.train is None:
        raise ConfigError("a long finetune needs training data", value="nothing", place="data.train", remedy="Add data.train.")
