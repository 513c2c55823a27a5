"""Models handed over: a member of a study's front, with ONNX and a certificate."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
from torch import nn

from lrsearch.compress import artifact
from lrsearch.report.certificate import Certificate
from lrsearch.spec.config import DeployConfig, Precision
from lrsearch.spec.parse import parse
from lrsearch.spec.progress import Progress
from lrsearch.study.front_conditions import choose
from lrsearch.study.study_folder import StudyFolder
from lrsearch.study.surroundings import surroundings
from lrsearch.task.base import Task
from lrsearch.task.examples import Data
from lrsearch.task.sources import load_metric
from lrsearch.workflows.materials import Materials, Study, study_in
from lrsearch.workflows.steps.export_folder import export_picked, origin_of, read_front
from lrsearch.workflows.steps.lowering import Lowering
from lrsearch.workflows.steps.recover_member import task_of
from lrsearch.workflows.steps.verify_folder import verify_folder


@surroundings()
def export(
    path: str | Path, *, study: Study | None = None, model: nn.Module | None = None, score: Data | None = None,
    pick: str = "", index: int | None = None, out: str | Path | None = None, progress: Progress | None = None, metric: str = "auto",
    precision: Precision | None = None, calibration: Data | None = None,
) -> Certificate:
    """Export a member of a study's front with ONNX and a certificate.

    The member is loaded anew from the exported folder: by a fresh process if a study file says where model and data come from,
    else by this one.

    Args:
        path: the study folder.
        study: its study file, if the folder may not name what is code: it names model and data.
        model: the dense model instead; not changed.
        score: as for the search, with ``model``.
        pick: conditions over the columns of the front; the best-scoring member that satisfies them and whose limits hold when
            it is measured again. All members satisfy an empty one.
        index: the row of the front instead.
        out: where to; ``export`` in the study folder by default.
        progress: told which members were refused, and why.
        metric: the study's ``proxy.metric``, if that is a function of yours, with ``model``.
        precision: ``float32``, ``float16`` or ``int8``, of ``model.onnx``; the study's ``deploy.precision`` by default.
        calibration: as for the search, with ``model``, where the precision is int8.

    Raises:
        LrsearchError: one of its kinds, for anything a caller can mend.
    """
    folder = Path(path)
    config = study_in(folder, study, model, "lrsearch.export", metric)
    front = read_front(folder, config)
    rows = choose(front, config.objectives[0], pick, index)
    wanted = parse(DeployConfig, {"precision": precision or config.deploy.precision}, "export").precision
    roles = ("score", *(("calibration",) if wanted == "int8" else ()))
    materials = Materials.of(model, config, *roles, score=score, calibration=calibration)
    target = Path(out or StudyFolder(folder).exported)
    return export_rows(folder, front, rows, target, materials, pick, progress, model is None, wanted)


def export_rows(
    folder: Path, front: pd.DataFrame, rows: list[int], out: Path, materials: Materials, pick: str, progress: Progress | None, fresh: bool,
    precision: Precision = "float32",
) -> Certificate:
    """Export the first of ``rows`` that holds its limits; see :func:`~lrsearch.workflows.steps.export_folder.export_picked`.

    Args:
        fresh: whether a fresh process makes the certificate, from what the configuration names.
        precision: of ``model.onnx``.
    """
    base, config, scoring = materials.model, materials.config, materials.score
    sample = scoring.sample()
    origin = replace(origin_of(folder, config, base, sample), pick=pick, precision=precision)

    def settled(saved: Path) -> Task:
        task = materials.task if isinstance(materials.task, Task) else task_of(artifact.read_plan(saved)[1], config.task)
        metric = load_metric(config.proxy.metric)
        return task.measured_by(metric) if metric else task

    def certified(made: Path) -> Certificate:
        certificate = verify_folder(made, base, Certificate.load(made).origin, scoring, settled(made))
        certificate.save(made)
        return certificate

    lowering = Lowering()
    if precision != "float32":
        calibration = materials.calibration if precision == "int8" else None
        lowering = Lowering(precision, base, calibration, settled(folder / front.model[rows[0]]))
    certify, told = None if fresh else certified, progress or Progress()
    return export_picked(folder, front, rows, out, base, sample, origin, told, certify, lowering, scoring)
