"""Where the trials of a study are: SQLite in its folder, or a storage that machines share, named by a URL.

``postgresql://user@host/database`` and ``mysql://…`` are databases; ``journal:////mnt/shared/studies.log`` is Optuna's journal on a disk
that all machines have. A folder whose trials are elsewhere says where, without secrets. A password comes with the URL, from the environment
(``LRSEARCH_STORAGE_PASSWORD``), or by the ways of the database's own driver, such as ``~/.pgpass``.
"""

import os
import re
import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from sqlalchemy import create_engine, event
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from lrsearch.errors import StudyError
from lrsearch.study.study_folder import StudyFolder

PASSWORD = "LRSEARCH_STORAGE_PASSWORD"
LOCK_TIMEOUT = 60.0  # seconds to wait for another process that writes
INTERVAL, GRACE = 15, 120  # seconds between the heartbeats of a trial, and without one until its worker counts as dead
MOVED = "moved"  # of a study: where it went
_DRIVERS = {"postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql"}
_ALIVE = "-c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3"  # who is gone holds no lock for long
_OPTIONS = {
    "postgresql": {"connect_timeout": 10, "options": f"-c timezone=utc -c lock_timeout={LOCK_TIMEOUT:.0f}s {_ALIVE}"},
    "mysql": {"connect_timeout": 10, "init_command": "SET time_zone = '+00:00'"},
}
_SECRET = re.compile("pass|pwd|secret|token", re.IGNORECASE)
_told: dict[str, URL] = {}  # a URL without secrets → as this process was told it


@dataclass(frozen=True)
class Place:
    """A study in a storage; its text has no secrets.

    Attributes:
        url: of the storage.
        study: its name there; None for the only one of a folder.
    """

    url: URL
    study: str | None = None

    @property
    def kind(self) -> str:
        """``sqlite``, ``journal``, ``postgresql`` or ``mysql``."""
        return self.url.get_backend_name()

    @property
    def database(self) -> bool:
        """Whether it is a database that machines share."""
        return self.kind in _DRIVERS

    @property
    def path(self) -> Path:
        """The file of SQLite, or of a journal."""
        return Path(self.url.database or "")

    def __str__(self) -> str:
        return str(self.path) if self.kind == "sqlite" else f"{_public(self.url)} (study {self.study})"

    __repr__ = __str__


def read_url(text: str) -> URL:
    """A storage as a command names it.

    Raises:
        StudyError: it is none that machines can share.
    """
    rule, remedy = "must be a storage that machines share", "For example postgresql://user@host/database, or journal:////mnt/shared/studies.log."
    try:
        url = make_url(text)
        kind = url.get_backend_name()
    except (ArgumentError, ValueError):
        raise StudyError(rule, value="no URL", place="storage", remedy=remedy) from None
    if kind not in (*_DRIVERS, "journal") or not url.database:
        raise StudyError(rule, value=_public(url), place="storage", remedy=remedy)
    if kind == "journal":
        return url.set(database=str(Path(url.database).absolute()))
    return url.set(drivername=_DRIVERS[kind]) if url.drivername == kind else url


def settle(folder: StudyFolder, storage: str | None, study: str, artifacts: str | None, moved: bool = False) -> None:
    """Note in ``folder`` that its trials are in the ``storage``, under the name ``study``, and its large files in ``artifacts``.

    Args:
        moved: wherever they were before.

    Raises:
        StudyError: they are elsewhere, or the storage is none.
    """
    was, now = folder.elsewhere, {"artifacts": artifacts if "://" in artifacts else str(Path(artifacts).absolute())} if artifacts else {}
    if storage:
        url = read_url(storage)
        _told[_public(url)] = url
        now |= {"url": _public(url), "study": study}
    kept = {**was, **now}
    known = "here" if folder.database.exists() else _where(was) if was.get("url") else None
    if known and storage and not moved and known != _where(now):
        rule, remedy = "the trials of a study folder are in one place", "Leave out --storage, give another --out, or use lrsearch move."
        raise StudyError(rule, value=f"{known}, not {_where(now)}", place=str(folder.path), remedy=remedy)
    if kept != was:
        folder.save(folder.pointer, kept)


def forget(folder: StudyFolder) -> None:
    """Note in ``folder`` that its trials are in it."""
    kept = {key: value for key, value in folder.elsewhere.items() if key not in ("url", "study")}
    folder.save(folder.pointer, kept) if kept else folder.pointer.unlink(missing_ok=True)


def _where(pointer: dict[str, Any]) -> str:
    return f"{pointer['url']} (study {pointer['study']})"


def place_of(folder: StudyFolder) -> Place:
    """Where the trials of the study in ``folder`` are.

    Raises:
        StudyError: what the folder says of it is damaged.
    """
    pointer = folder.elsewhere
    if "url" not in pointer:
        return Place(URL.create("sqlite", database=str(folder.database.absolute())))
    shown = str(pointer["url"])
    url = _told.get(shown) or read_url(shown)
    if url.password is None and (password := os.environ.get(PASSWORD)):
        url = url.set(password=password)
    return Place(url, str(pointer["study"]))


def opened(place: Place, worker: str | None = None, heartbeat: bool = False) -> RDBStorage | JournalStorage:
    """The storage at ``place``.

    Args:
        worker: has one connection to a database, which shows this name, and a turn is of that connection; its tables must be there, as
            whoever opens it without this makes and checks them. That keeps no connection.
        heartbeat: it knows which trials are not alive.
    """
    if place.kind == "journal":
        return JournalStorage(JournalFileBackend(str(place.path)))
    if place.kind == "sqlite":
        return _sqlite(place.url)
    pool: dict[str, Any] = {"pool_size": 1, "max_overflow": 0} if worker else {"poolclass": NullPool}
    pool |= {"pool_pre_ping": heartbeat, "connect_args": _connecting(place, worker)}
    interval, grace = (INTERVAL, GRACE) if heartbeat else (None, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return RDBStorage(
            place.url.render_as_string(hide_password=False), pool, bool(worker), heartbeat_interval=interval, grace_period=grace,
            skip_table_creation=bool(worker),
        )


def engine(place: Place, worker: str | None = None) -> Engine:
    """The database at ``place``, without its storage; it shows the name of the ``worker``."""
    return create_engine(place.url, poolclass=NullPool, connect_args=_connecting(place, worker))


def _connecting(place: Place, worker: str | None = None) -> dict[str, Any]:
    """How to connect to a database."""
    return {**_OPTIONS[place.kind], **({"application_name": worker or "lrsearch"} if place.kind == "postgresql" else {})}


def study_in(storage: BaseStorage, place: Place) -> Study | None:
    """The study at ``place``, None if it is not there.

    Raises:
        StudyError: it was moved away.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if place.study is None and not storage.get_all_studies():
        return None
    try:
        study = optuna.load_study(study_name=place.study, storage=storage)
    except KeyError:
        return None
    refuse_moved(study, place)
    return study


def refuse_moved(study: Study, place: Place) -> None:
    """Check that ``study`` is still at ``place``.

    Raises:
        StudyError: it was moved away, or its move was not finished.
    """
    if to := study.user_attrs.get(MOVED):
        rule, remedy = "the study must be where it was", "Give its new place: --storage, or its folder; or repeat lrsearch move."
        raise StudyError(rule, value=f"moved to {to}", place=str(place), remedy=remedy)


@contextmanager
def reading(place: Place, remedy: str) -> Iterator[None]:
    """A context in which the storage at ``place`` is opened and read.

    Raises:
        StudyError: it is damaged, cannot be reached, or has no driver.
    """
    try:
        yield
    except ImportError:
        how = f"Install it: pip install 'lrsearch[{place.kind}]'."
        raise StudyError("the database needs its driver", value=place.url.drivername, place=str(place), remedy=how) from None
    except (SQLAlchemyError, StorageInternalError, NoSuchModuleError, OSError) as error:
        shown = str(error).splitlines()[0].replace(place.url.password or "\0", "***")
        raise StudyError("must be an Optuna storage", value=shown, place=str(place), remedy=remedy) from _without_secrets(place, error)


def _without_secrets(place: Place, error: Exception) -> Exception | None:
    """``error`` as a cause to show, unless its text may have the password."""
    return error if place.kind == "sqlite" else None


def let_go(storage: BaseStorage) -> None:
    """Close the connections of ``storage`` until it is needed again."""
    if isinstance(storage, RDBStorage):
        storage.engine.dispose()


def _public(url: URL) -> str:
    """``url`` without secrets."""
    query = {key: value for key, value in url.query.items() if not _SECRET.search(key)}
    return url.set(password=None, query=query).render_as_string()


def _sqlite(url: URL) -> RDBStorage:
    """SQLite, whatever characters are in its path."""
    storage = RDBStorage(url.render_as_string(), {"connect_args": {"timeout": LOCK_TIMEOUT}})
    event.listen(storage.engine, "connect", _journal)
    storage.engine.dispose()  # the connections made until now
    return storage


def _journal(connection: sqlite3.Connection, _: object) -> None:
    """Write ahead, and wait for the disk at checkpoints alone: a crash of the system may cost the last trials, never the file.

    Where that cannot be, such as on a disk of the network, SQLite's own way stays.
    """
    with suppress(sqlite3.OperationalError):
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
