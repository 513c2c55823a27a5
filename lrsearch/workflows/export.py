"""Models handed over: a member of a study's front, with ONNX and a certificate."""

from pathlib import Path

from torch import nn

from lrsearch.report.certificate import Certificate
from lrsearch.spec.config import Precision
from lrsearch.spec.progress import Progress
from lrsearch.study.study_folder import StudyFolder
from lrsearch.study.surroundings import surroundings
from lrsearch.task.examples import Data
from lrsearch.workflows.materials import Study
from lrsearch.workflows.result import renew
from lrsearch.workflows.steps.export_rows import export_member


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
    target = Path(out or StudyFolder(folder).exported)
    certificate = export_member(folder, study, model, score, pick, index, target, progress, metric, precision, calibration)
    renew(target.parent)
    return certificate
