"""A member of the front finetuned at length, from Python and from a study file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from lrsearch.errors import ConfigError
from lrsearch.spec.config import StudyConfig
from lrsearch.spec.parse import parse
from lrsearch.spec.progress import Progress
from lrsearch.spec.recover import RecoverConfig
from lrsearch.study.identity import read_config, refuse_other_study
from lrsearch.study.recovered import read_finished
from lrsearch.study.study_folder import StudyFolder
from lrsearch.study.workers import alone
from lrsearch.task.base import Task
from lrsearch.task.data import Examples
from lrsearch.task.examples import Data
from lrsearch.task.sources import load_base, load_examples
from lrsearch.workflows.export import read_front
from lrsearch.workflows.log import log_to
from lrsearch.workflows.recover import RecoverReport, chosen_member, recover_member
from lrsearch.workflows.result import Result


def recover(
    path: str | Path, *, model: nn.Module, calibration: Data, score: Data, train: Data, pick: str = "", index: int | None = None,
    out: str | Path | None = None, progress: Progress | None = None, device: str = "cpu", metric: str = "auto", task: Task | None = None,
    **settings: Any,
) -> RecoverReport:
    """Finetune a member of a study's front at length; the same call again goes on where it stopped.

    The recovered model is scored as a trial is and joins the front.

    Args:
        path: the study folder.
        model: the dense model; not changed.
        calibration: as for the search.
        score: as for the search.
        train: (input, label) pairs to finetune on.
        pick: conditions over the columns of the front; the best-scoring member that satisfies them. All satisfy an empty one.
        index: the row of the front instead.
        out: the recovered model's folder, instead of one below the study's; it then does not join the front.
        progress: told of every epoch.
        device: where to compute.
        task: the study's, if it is a class of yours.
        metric: the study's ``proxy.metric``, if that is a function of yours: a study folder may not say which code runs.
        **settings: keys of :class:`RecoverConfig`, such as ``epochs``, ``learning_rate`` and ``augment``.

    Raises:
        LrsearchError: one of its kinds, for anything a caller can mend.

    Example:
        >>> lrsearch.recover("runs/mine", model=model, calibration=a, score=b, train=c, index=2, epochs=30, augment="flip-crop")
    """
    study = Path(path)
    recovery = parse(RecoverConfig, settings, "lrsearch.recover")
    config = read_config(StudyFolder(study)).model_copy(update={"recover": recovery, "device": device})
    if config.proxy.metric != metric:
        raise ConfigError(
            "must be the study's metric, in the caller's words", value=metric, place="lrsearch.recover: metric",
            remedy=f"Pass metric={config.proxy.metric!r}, if you trust it.",
        )
    given = {"calibration": calibration, "score": score, "train": train}
    sets = [Examples(data, role, None, model) for role, data in given.items()]
    return _recover(study, config, model, sets, pick, index, Path(out) if out else None, progress or Progress(), task)


def recover_study(
    config: StudyConfig, study: Path, pick: str = "", index: int | None = None, out: Path | None = None, progress: Progress | None = None,
) -> RecoverReport:
    """Finetune a member of the front of a study file's study at length; see :func:`recover`."""
    assert config.model is not None, "load_study checks this"
    assert config.data is not None, "load_study checks this"
    refuse_other_study(StudyFolder(study), config)
    if config.data.train is None:
        raise ConfigError("a recovery needs training data", value="nothing", place="data.train", remedy="Add data.train.")
    model, sources = load_base(config.model), config.data
    calibration, score = (load_examples(s, r, model) for s, r in ((sources.calibration, "calibration"), (sources.score, "score")))
    train = load_examples(config.data.train, "train", model)
    return _recover(study, config, model, (calibration, score, train), pick, index, out, progress or Progress())


def _recover(
    study: Path, config: StudyConfig, model: nn.Module, sets: Sequence[Examples],
    pick: str, index: int | None, out: Path | None, progress: Progress, task: Task | None = None,
) -> RecoverReport:
    refuse_other_study(StudyFolder(study), config)
    with alone(study), log_to(StudyFolder(study).log):
        member = chosen_member(read_front(study, config), config.objectives[0], pick, index)
        folder = out or study / StudyFolder.recovered_name(member)
        report = recover_member(study, member, folder, model, sets[0], sets[1], sets[2], config, progress, task)
        if out is None:
            found = read_finished(StudyFolder(study))
            Result(study, found.records, found.dense, found.baseline, config, model, sets[1]).write()
    return report
