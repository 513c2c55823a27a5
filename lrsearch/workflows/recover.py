"""A member of the front finetuned at length."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from lrsearch.errors import ConfigError
from lrsearch.spec.parse import parse
from lrsearch.spec.progress import Progress
from lrsearch.spec.recover import RecoverConfig
from lrsearch.study.identity import refuse_other_study
from lrsearch.study.process_state import restoring_process_state
from lrsearch.study.study_folder import StudyFolder
from lrsearch.study.workers import alone
from lrsearch.task.base import Task
from lrsearch.task.examples import Data
from lrsearch.workflows.materials import Materials, Study, study_in
from lrsearch.workflows.open import open as opened
from lrsearch.workflows.steps.export_folder import read_front
from lrsearch.workflows.steps.log import log_to
from lrsearch.workflows.steps.recover_member import RecoverReport, chosen_member, recover_member


@restoring_process_state()
def recover(
    path: str | Path, *, study: Study | None = None, model: nn.Module | None = None, calibration: Data | None = None,
    score: Data | None = None, train: Data | None = None, pick: str = "", index: int | None = None,
    out: str | Path | None = None, progress: Progress | None = None, device: str = "cpu", metric: str = "auto",
    task: Task | None = None, **settings: Any,
) -> RecoverReport:
    """Finetune a member of a study's front at length; the same call again goes on where it stopped.

    The recovered model is scored as a trial is, and joins the front where nothing dominates it. It is the best state that held-out
    training data saw, the member's own included; the report says whether the study's score became better.

    Args:
        path: the study folder.
        study: its study file, if the folder may not name what is code: it names model, data, ``device`` and, in ``recover``, the settings.
        model: the dense model instead; not changed.
        calibration: as for the search, with ``model``.
        score: as for the search, with ``model``.
        train: (input, label) pairs to finetune on, with ``model``.
        pick: conditions over the columns of the front; the best-scoring member that satisfies them. All satisfy an empty one.
        index: the row of the front instead.
        out: the recovered model's folder, instead of one below the study's; it then does not join the front.
        progress: told of every epoch.
        device: where to compute.
        metric: the study's ``proxy.metric``, if that is a function of yours: a study folder may not say which code runs.
        task: the study's, if it is a class of yours.
        **settings: keys of :class:`RecoverConfig`, such as ``epochs``, ``learning_rate`` and ``augment``.

    Raises:
        LrsearchError: one of its kinds, for anything a caller can mend.

    Example:
        >>> lrsearch.recover("runs/mine", model=model, calibration=a, score=b, train=c, index=2, epochs=30, augment="flip-crop")
    """
    folder = Path(path)
    if model is not None:
        recovery = parse(RecoverConfig, settings, "lrsearch.recover")
        config = study_in(folder, study, model, "lrsearch.recover", metric).model_copy(update={"recover": recovery, "device": device})
    else:
        config = study_in(folder, study, None, "lrsearch.recover")
        if settings:
            own = {**config.recover.model_dump(mode="json"), **settings}
            config = config.model_copy(update={"recover": parse(RecoverConfig, own, "lrsearch.recover")})
        if config.data is None or config.data.train is None:
            raise ConfigError("a recovery needs training data", value="nothing", place="data.train", remedy="Add data.train.")
    given = {"calibration": calibration, "score": score, "train": train}
    materials = Materials.of(model, config, "calibration", "score", "train", task=task, **given)
    return _recover(folder, materials, pick, index, Path(out) if out else None, progress or Progress())


def _recover(folder: Path, materials: Materials, pick: str, index: int | None, out: Path | None, progress: Progress) -> RecoverReport:
    config, sets = materials.config, (materials.calibration, materials.score, materials.train)
    task = materials.task if isinstance(materials.task, Task) else None
    refuse_other_study(StudyFolder(folder), config)
    with alone(folder), log_to(StudyFolder(folder).log):
        member = chosen_member(read_front(folder, config), config.objectives[0], pick, index)
        target = out or folder / StudyFolder.recovered_name(member)
        report = recover_member(folder, member, target, materials.model, *sets, config, progress, task)
        if out is None:
            result = opened(folder)
            result.write()
            report = replace(report, joined=target.relative_to(folder).as_posix() in set(result.front.model))
    return report
