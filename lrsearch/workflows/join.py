"""Workers on other machines: all that one needs is the storage, the study's name, and the code that makes model and data."""

from collections.abc import Sequence
from pathlib import Path

from lrsearch.spec.config import StudyConfig
from lrsearch.spec.progress import Progress
from lrsearch.study.identity import receive
from lrsearch.study.study_folder import StudyFolder
from lrsearch.study.workers import working
from lrsearch.workflows.from_folder import config_alone, config_with
from lrsearch.workflows.result import Result
from lrsearch.workflows.search import search


def work(
    storage: str, study: str, *, file: StudyConfig | None = None, out: str | Path | None = None, artifacts: str | None = None,
    progress: Progress | None = None, overrides: Sequence[str] = (),
) -> Result:
    """Work on a study that another machine began; returns when nothing is left to do.

    Args:
        storage: the URL of where its trials are.
        study: its name there.
        file: the user's study file, where model and data are code, which a storage may not name.
        out: a folder for this machine's report, log and files; ``runs/<study>`` by default.
        artifacts: where profile, latency table, losses, paused finetunes and models are for all workers.
        progress: told how far the study is.
        overrides: ``key.key=value``, of what may differ between workers.

    Raises:
        LrsearchError: one of its kinds, for anything a caller can mend.
    """
    folder = Path(out or f"runs/{study}")
    with working(folder, storage=storage, study=study, artifacts=artifacts):
        receive(StudyFolder(folder))
    config = config_with(folder, file) if file else config_alone(folder, overrides)
    return search(config, out=folder, progress=progress)
