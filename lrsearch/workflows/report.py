"""The front's files written anew, from the storage."""

from pathlib import Path

from torch import nn

from lrsearch.compress import artifact
from lrsearch.errors import StudyError
from lrsearch.spec.cost import Cost
from lrsearch.spec.score import Score
from lrsearch.study.opening import read_config
from lrsearch.study.recovered import read_records
from lrsearch.study.surroundings import surroundings
from lrsearch.study.workers import alone
from lrsearch.workflows.result import Result


@surroundings()
def report(path: str | Path, *, model: nn.Module | None = None) -> Result:
    """Write ``front.csv``, ``front.parquet`` and ``front.html`` of a finished or stopped study anew.

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
    config = read_config(folder)
    with alone(folder):
        dense, baseline = _dense(folder)
        result = Result(folder, read_records(folder), dense, baseline, config, model, None)
        result.write()
    return result


def _dense(folder: Path) -> tuple[Cost, Score]:
    """The dense model's cost and score, which each saved model repeats.

    Raises:
        StudyError: there is no saved model.
    """
    for saved in sorted((folder / "models").glob("*")):
        if (saved / artifact.PLAN).is_file():
            about = artifact.read_plan(saved)[1]
            return Cost.from_dict(about["dense"]), Score(**about["baseline"])
    raise StudyError("the study must have a saved model", value="none", place=str(folder / "models"), remedy="Run lrsearch search first.")
