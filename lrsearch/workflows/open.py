"""A study brought back from its folder."""

from pathlib import Path

from torch import nn

from lrsearch.study.identity import read_config
from lrsearch.study.recovered import read_finished
from lrsearch.study.study_folder import StudyFolder
from lrsearch.study.surroundings import surroundings
from lrsearch.workflows.result import Result


@surroundings()
def open(path: str | Path, *, model: nn.Module | None = None) -> Result:
    """The result of a finished, stopped or running study, as its folder has it; takes a second, and writes nothing.

    Args:
        path: the study folder.
        model: the dense model, for :meth:`Result.load`; models of timm need none.

    Raises:
        LrsearchError: one of its kinds, for anything a caller can mend.

    Example:
        >>> result = lrsearch.open("runs/digits")
        >>> result.front, result.plot()
    """
    folder = Path(path)
    study = StudyFolder(folder)
    config, found = read_config(study), read_finished(study)
    return Result(folder, found.records, found.dense, found.baseline, config, model, None, chance=found.chance, unit=found.unit)
