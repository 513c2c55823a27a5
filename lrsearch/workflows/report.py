"""The front's files written anew, from the storage."""

from pathlib import Path

from torch import nn

from lrsearch.study.identity import read_config
from lrsearch.study.process_state import restoring_process_state
from lrsearch.study.study_folder import StudyFolder
from lrsearch.study.workers import alone
from lrsearch.workflows.open import open as opened
from lrsearch.workflows.result import Result


@restoring_process_state()
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
    read_config(StudyFolder(folder))  # no folder is locked that is no study
    with alone(folder):
        result = opened(folder, model=model)
        result.write()
    return result
