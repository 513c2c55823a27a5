"""The front's files written anew, from the storage."""

from pathlib import Path

from torch import nn

from lrsearch.study.identity import read_config
from lrsearch.study.recovered import read_finished
from lrsearch.study.study_folder import StudyFolder
from lrsearch.study.surroundings import surroundings
from lrsearch.study.workers import alone
from lrsearch.workflows.result import Result


@surroundings()
def report(path: str | Path, *, model: nn.Module | None = None) -> Result:
    """Write the front of a finished or stopped study anew.

    Takes seconds: neither model nor data are needed.

    Args:
        path: the study folder.
        model: the dense model, for :meth:`Result.load`.

    Raises:
        LrsearchError: one of its kinds, for anything a caller can mend.

    Example:
        >>> lrsearch.report("runs/mine").front
    """
    folder = Path(path)
    study = StudyFolder(folder)
    config = read_config(study)
    with alone(folder):
        found = read_finished(study)
        result = Result(folder, found.records, found.dense, found.baseline, config, model, None)
        result.write()
    return result
