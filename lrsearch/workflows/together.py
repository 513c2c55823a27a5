"""A search by several workers that one command starts and watches: processes of this machine, or tasks that Ray places."""

import os
from concurrent.futures import FIRST_COMPLETED, wait
from pathlib import Path

from lrsearch import errors
from lrsearch.errors import ConfigError, StudyError
from lrsearch.spec.config import StudyConfig
from lrsearch.spec.progress import Lines, Progress
from lrsearch.study.storage import GRACE, PASSWORD, read_url
from lrsearch.study.study_folder import StudyFolder
from lrsearch.workflows.result import Result
from lrsearch.workflows.search import search
from lrsearch.workflows.steps.placers import LocalWorkers, Placer, RayWorkers, Task

RESTARTS = 10  # of one worker whose process or machine is lost; a plan that ends workers is given up after three


def search_together(
    config: StudyConfig, workers: int | None = None, *, ray: str | None = None, gpus: float | None = None, cpus: float = 1,
    out: str | Path | None = None, storage: str | None = None, artifacts: str | None = None, progress: Progress | None = None,
) -> Result:
    """Search by several workers, which are started again where they are lost, and write the result.

    Args:
        config: of the study; its code is looked for in this folder, on every machine that has it.
        workers: how many; None for one per GPU, or one.
        ray: the address of a Ray cluster that places them, for example ``auto``; processes of this machine if None.
        gpus: that Ray gives each worker: 1 if the study's device is CUDA, else none; may be a part of one.
        cpus: that Ray gives each worker.
        out: the study folder here, ``runs/<name>`` by default; workers on Ray have one in their machine's folder for temporary files.
        storage: as for :func:`lrsearch.search`; Ray needs one.
        artifacts: as for :func:`lrsearch.search`.
        progress: told what becomes of the workers, then how the result is made.

    Raises:
        LrsearchError: one of its kinds, for anything a caller can mend.
    """
    progress, place = Lines() if progress is None else progress, Path(out or f"runs/{config.name}")
    known = StudyFolder(place).elsewhere
    storage, artifacts = storage or known.get("url"), artifacts or known.get("artifacts")
    if ray and not storage:
        remedy = "Add --storage, for example postgresql://user@host/database."
        raise ConfigError("workers on Ray need a storage that machines share", value="none", place="--storage", remedy=remedy)
    task = Task(config, _whole(storage), _absolute(artifacts), place.absolute(), Path.cwd())
    gpus = float(config.device.startswith("cuda")) if gpus is None else gpus
    watch(RayWorkers(task, workers, ray, gpus, cpus) if ray else LocalWorkers(task, workers), progress)
    return search(config, out=place, progress=progress, storage=storage, artifacts=artifacts)


def watch(placer: Placer, progress: Progress) -> None:
    """Start the workers, and those that are lost again, until one finds nothing left to do and the others have ended.

    Raises:
        LrsearchError: what all of them ended in.
    """
    progress.stage("Workers", placer.count)
    running = {placer.start(index): index for index in range(placer.count)}
    left, wrong, done = dict.fromkeys(running.values(), RESTARTS), dict[str, str](), False
    try:
        while running:
            ended, _ = wait(running, GRACE if done else None, FIRST_COMPLETED)
            if not ended:
                break  # those that found no room, or began again only now
            for future in ended:
                index, error = running.pop(future), future.exception()
                if error is None:
                    wrong, done = future.result() or wrong, done or future.result() is None
                    progress.advance()
                elif not placer.lost(error):
                    raise error
                elif done or not left[index]:
                    progress.note(f"worker {index} was lost")
                else:
                    left[index] -= 1
                    progress.note(f"worker {index} was lost, and is started again")
                    running[placer.start(index)] = index
    finally:
        placer.stop(running)
    if wrong and not done:
        kind = getattr(errors, wrong["kind"])
        raise kind(wrong["rule"], value=wrong["value"], place=wrong["place"], remedy=wrong["remedy"])
    if not done:
        rule, remedy = "some worker must live to the end", "See what ends them: search without --workers."
        raise StudyError(rule, value=f"each was lost {RESTARTS + 1} times", place="--workers", remedy=remedy)


def _whole(storage: str | None) -> str | None:
    """The URL with its password, which other machines' environments may lack."""
    if storage is None:
        return None
    url, password = read_url(storage), os.environ.get(PASSWORD)
    return (url.set(password=password) if url.password is None and password else url).render_as_string(hide_password=False)


def _absolute(artifacts: str | None) -> str | None:
    return artifacts if artifacts is None or "://" in artifacts else str(Path(artifacts).absolute())
