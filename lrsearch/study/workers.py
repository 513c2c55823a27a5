"""Workers: processes that search one study side by side, by turns at its storage.

Each worker has a file and holds a lock on it. The system frees the lock however the process ends. So a trial is under way while its
worker holds its lock; otherwise the worker was killed. Code that reads the state of a study, decides and changes it takes a turn. A
command that needs the study for itself, such as a recovery, is refused while there are workers. Workers are refused while it runs.

Where the trials are in a database that machines share, that has the turns and knows who lives; the locks are of the folder alone. Where
they are in a journal on a shared disk, the locks are beside it.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TypeVar
from uuid import uuid4

from filelock import FileLock, Timeout
from sqlalchemy.exc import SQLAlchemyError

from lrsearch.errors import StudyError
from lrsearch.spec.atomic import read_json, write_whole
from lrsearch.spec.waiting import PATIENCE, waited_for
from lrsearch.study.heart import Heart
from lrsearch.study.storage import place_of, settle
from lrsearch.study.study_folder import WORKER_NAME, StudyFolder
from lrsearch.study.turns import DatabaseTurn, held, held_free

log = logging.getLogger("lrsearch")
MOMENT = 1.0  # seconds that others may take to join
Note = Callable[[str], None]
Kept = TypeVar("Kept")


class Turn:
    """A lock, for ``with``: only one worker has it at a time. That worker may take it again.

    Args:
        folder: the study.
        name: of the worker.
        note: told who has the turn, after each minute of waiting.
    """

    def __init__(self, folder: StudyFolder, name: str, note: Note) -> None:
        self._lock, self._folder, self._name, self._note = FileLock(folder.turn), folder, name, note

    lately = -1  # others may write without a turn

    def do(self, call: Callable[[], Kept]) -> Kept:
        """What ``call`` returns in a turn."""
        with self:
            return call()

    def patiently(self, call: Callable[[], Kept]) -> Kept:
        """What ``call`` returns; a file is never away."""
        return call()

    def close(self) -> None:
        """A file needs none."""

    def __enter__(self) -> None:
        if not self._lock.is_locked:
            while not self._acquired():
                holder = read_json(self._folder.turn_holder)
                who = f"worker {holder.get('worker', '?')} (process {holder.get('process', '?')})"
                self._note(f"{who} has had its turn for more than {PATIENCE:.0f} s; this one waits")
            write_whole(self._folder.turn_holder, json.dumps({"worker": self._name, "process": os.getpid()}) + "\n")
        else:
            self._lock.acquire()

    def _acquired(self) -> bool:
        with suppress(Timeout):
            self._lock.acquire(timeout=PATIENCE)
            return True
        return False

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._lock.release()


class Workers:
    """The workers of the study in ``folder``, as one of them sees them.

    Attributes:
        name: of this one, in the trials that it makes.
        turn: a lock that one worker has at a time.
        heart: tells that this one lives, where a database knows who does.
        far: others may be on other machines, which are not to wait while this one profiles the model.
    """

    def __init__(self, folder: Path, note: Note = log.warning) -> None:
        self.name, study = uuid4().hex, StudyFolder(folder)
        place = place_of(study)
        self.far = place.kind != "sqlite"
        meeting = StudyFolder(place.path.with_name(f"{place.path.name}-{place.study}")) if place.kind == "journal" else study
        self._folder, self._own = meeting.workers, FileLock(meeting.workers / self.name)
        shown = f"worker {self.name}"
        self._place, self._shown, self._note = place, shown, note
        self.heart = Heart(place, shown) if place.database else None
        self.turn: Turn | DatabaseTurn = DatabaseTurn(place, shown, note) if place.database else Turn(meeting, self.name, note)

    def alive(self, name: str | None) -> bool:
        """Whether the worker of that name has not ended. None is the name of one that has."""
        return name is not None and (name == self.name or (bool(WORKER_NAME.fullmatch(name)) and _held(self._folder / name)))

    @property
    def others(self) -> list[str]:
        """The names of all other workers that are alive."""
        return [path.name for path in self._files() if path.name != self.name and _held(path)]

    def join(self) -> None:
        """Make this worker known, and remove the files of those that were killed."""
        self._folder.mkdir(exist_ok=True, parents=True)
        for path in self._files():
            if not _held(path):
                path.unlink(missing_ok=True)
        self._own.acquire()
        if self.heart:
            self.heart.start()

    @contextmanager
    def sole(self, what: str) -> Iterator[None]:
        """Have ``what`` of the study, such as its profile, for oneself, where others are on other machines; wait until it is free."""
        if self._place.database:
            connection = self.turn.patiently(lambda: held(self._place, self._shown, what, self._note))
            try:
                yield
            finally:
                with suppress(SQLAlchemyError):
                    connection.close()
        elif self.far:
            tell = f"another worker has been at the {what} for more than {PATIENCE:.0f} s; this one waits"
            with waited_for(self._lock(what), lambda: self._note(tell)):
                yield
        else:
            yield

    @contextmanager
    def free(self, names: Sequence[str], most: int) -> Iterator[list[str]]:
        """Have for oneself the first of ``names``, parts of what all workers make, that nobody has; ``most`` at most, or none."""
        if self._place.database:
            found, connection = self.turn.patiently(lambda: held_free(self._place, self._shown, names, most))
            try:
                yield found
            finally:
                with suppress(SQLAlchemyError):
                    connection.close()
            return
        with ExitStack() as locks:
            found = []
            for name in names:
                with suppress(Timeout):
                    if len(found) < most:
                        locks.enter_context(FileLock(self._lock(name)).acquire(timeout=0))
                        found.append(name)
            yield found

    def _lock(self, what: str) -> Path:
        """The lock of ``what`` where there is no database."""
        return self._folder.with_name(f"{what}.lock")

    def _files(self) -> list[Path]:
        """The files of workers; other files in the folder are not ours."""
        return [path for path in self._folder.glob("*") if WORKER_NAME.fullmatch(path.name) and path.is_file() and not path.is_symlink()]

    def leave(self) -> None:
        """Remove this worker's file."""
        if self.heart:
            self.heart.stop()
        self.turn.close()
        self._own.release()
        (self._folder / self.name).unlink(missing_ok=True)


@contextmanager
def working(
    folder: Path, note: Note = log.warning, storage: str | None = None, study: str = "study", artifacts: str | None = None,
) -> Iterator[Workers]:
    """Work on the study in ``folder`` beside others that do.

    Args:
        note: told where another worker keeps this one waiting.
        storage: the URL of where its trials are, if not in the folder.
        study: its name there.
        artifacts: where its large files are, if not in the folder.

    Raises:
        StudyError: another command needs it for itself, it cannot be written, or is something else than a study.
    """
    with _begun_or_cleared(folder):
        with _door(folder):
            settle(StudyFolder(folder), storage, study, artifacts)
            workers = Workers(folder, note)
            if not workers.others:
                StudyFolder(folder).forget_scratch()
            workers.join()
        try:
            yield workers
        finally:
            workers.leave()


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Have the study in ``folder`` for oneself.

    Raises:
        StudyError: another command uses it, it cannot be written, or is something else than a study.
    """
    with _begun_or_cleared(folder), _door(folder):
        if Workers(folder).others:
            raise _in_use(folder)
        yield


@contextmanager
def _begun_or_cleared(folder: Path) -> Iterator[None]:
    """Remove a study afterwards that has neither trials nor another worker, with the folders that were made for it."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    finally:
        if folder.is_dir() and not StudyFolder(folder).begun:
            with suppress(StudyError), _door(folder):
                if not Workers(folder).others:
                    StudyFolder(folder).clear()
            with suppress(OSError):
                for path in made:
                    path.rmdir()


@contextmanager
def _door(folder: Path) -> Iterator[None]:
    """A lock. A worker holds it for a moment when it joins; a command that needs the study for itself holds it until it ends."""
    study = StudyFolder(folder)
    try:
        study.refuse_foreign()
        folder.mkdir(parents=True, exist_ok=True)
        door = FileLock(study.door)
        door.acquire(timeout=MOMENT)
        study.mark()
    except Timeout:
        raise _in_use(folder) from None
    except (OSError, ValueError) as error:  # a ValueError is of a NUL in the name
        shown = getattr(error, "strerror", None) or str(error)
        raise StudyError("the study folder must be writable", value=shown, place=str(folder), remedy="Give another --out.") from None
    try:
        yield
    finally:
        door.release()


def _in_use(folder: Path) -> StudyError:
    rule = "only searches may use a study folder at the same time"
    return StudyError(rule, value="in use", place=str(folder), remedy="Wait for the other command, or give another --out.")


def _held(path: Path) -> bool:
    """Whether a process holds the lock at ``path``."""
    if not path.exists():
        return False
    with suppress(Timeout), FileLock(path).acquire(timeout=0):
        return False
    return True
