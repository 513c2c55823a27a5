"""Questions about a finished or stopped study."""

from pathlib import Path

from lrsearch.spec.cost import Budget
from lrsearch.study.identity import read_config
from lrsearch.study.study_folder import StudyFolder
from lrsearch.study.surroundings import surroundings
from lrsearch.study.what_if import Answer
from lrsearch.study.what_if import ask as answer


@surroundings()
def ask(path: str | Path, budget: Budget, *, queue: bool = False) -> Answer:
    """What a study knows about other budgets: the best plan tried, and one that was not, with the divergence that is predicted for it.

    Takes seconds: neither model nor data are needed.

    Args:
        path: the study folder.
        budget: upper limits, besides those of the study.
        queue: let the search try that plan next, whether it runs now or later.

    Raises:
        LrsearchError: one of its kinds, for anything a caller can mend.

    Example:
        >>> lrsearch.ask("runs/mine", lrsearch.Budget(params=0.25)).untried.divergence
    """
    folder = Path(path)
    config = read_config(StudyFolder(folder))
    return answer(folder, config, budget, queue)
