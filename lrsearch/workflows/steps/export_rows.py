"""A member of a study's front exported, with ONNX and a certificate: what :func:`lrsearch.export` and :meth:`Result.export` share."""

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
from lrsearch.task.base import Task
from lrsearch.task.examples import Data
from lrsearch.task.sources import load_metric
from lrsearch.workflows.materials import Materials, Study, study_in
from lrsearch.workflows.steps.export_folder import export_picked, origin_of, read_front
from lrsearch.workflows.steps.lowering import Lowering
from lrsearch.workflows.steps.recover_member import task_of
from lrsearch.workflows.steps.verify_folder import verify_folder


def export_member(
    folder: Path, study: Study | None, model: nn.Module | None, score: Data | None, pick: str, index: int | None, out: Path,
    progress: Progress | None, metric: str, precision: Precision | None, calibration: Data | None,
) -> Certificate:
    """Export a member of the front of the study in ``folder``; see :func:`lrsearch.export`."""
    config = study_in(folder, study, model, "lrsearch.export", metric)
    front = read_front(folder, config)
    rows = choose(front, config.objectives[0], pick, index)
    wanted = parse(DeployConfig, {"precision": precision or config.deploy.precision}, "export").precision
    roles = ("score", *(("calibration",) if wanted == "int8" else ()))
    materials = Materials.of(model, config, *roles, score=score, calibration=calibration)
    return export_rows(folder, front, rows, out, materials, pick, progress, model is None, wanted)


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
