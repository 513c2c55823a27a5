"""A turn by the database: its lock, which one worker of a study has at a time, on whatever machine.

The lock belongs to the one connection by which the worker also reads and writes. Who loses the connection has lost the turn, and what it
was about to do fails: it is done again from the start, in another turn, unless the database is away for more than ``AWAY`` seconds.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from types import TracebackType
from typing import Any, TypeVar

from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy import event, text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError

from lrsearch.study.storage import GRACE, LOCK_TIMEOUT, Place, engine, opened, reading

AWAY, PAUSE = 600.0, 1.0  # seconds that a database may be away, and until it is tried again
FRESH = 1.0  # seconds that trials count as they were read, by who is not to decide: progress, and whether a model is to be saved
Kept = TypeVar("Kept")
_LOCK = {"postgresql": "SELECT true FROM pg_advisory_lock(:key)", "mysql": f"SELECT GET_LOCK(:key, {LOCK_TIMEOUT:.0f})"}
_TRY = {"postgresql": "SELECT pg_try_advisory_lock(:key)", "mysql": "SELECT GET_LOCK(:key, 0)"}
_UNLOCK = {"postgresql": "SELECT pg_advisory_unlock(:key)", "mysql": "SELECT RELEASE_LOCK(:key)"}
_HOLDER = """
SELECT l.pid, a.application_name,
       (SELECT max(greatest(b.state_change, b.backend_start)) FROM pg_stat_activity b WHERE b.application_name = a.application_name)
       < now() - :grace * interval '1 second' AS silent
FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid JOIN pg_database d ON d.oid = l.database AND d.datname = current_database()
WHERE l.locktype = 'advisory' AND l.granted AND (l.classid::bigint << 32) + l.objid::bigint = :key
"""
_WRITES = ("INSERT", "UPDATE", "DELETE")


class TurnLost(Exception):
    """The connection that had the turn is gone."""


class DatabaseTurn:
    """A lock, for ``with``: only one worker has it at a time. That worker may take it again.

    Args:
        place: the study.
        name: of the worker.
        note: told who has the turn, after each minute of waiting, and that the database is away.
    """

    def __init__(self, place: Place, name: str, note: Callable[[str], None]) -> None:
        self._place, self._name, self._note = place, name, note
        self._depth, self._changes, self._fresh = 0, 0, -float("inf")
        self._key = _key(place.kind, f"study {place.study}")

    @cached_property
    def storage(self) -> RDBStorage:
        """The storage of the study, by the connection of the turn.

        Raises:
            StudyError: it cannot be reached.
        """
        with reading(self._place, "Check the URL, the password and that the database runs."):
            with engine(self._place).connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                key = {"key": _key(self._place.kind, "tables")}
                while not _acquired(lambda lock: list(connection.execute(text(lock), key)), self._place.kind):
                    pass  # it waits as long as others are at them, whom it would be in the way
                opened(self._place)  # makes and checks the tables
            storage = opened(self._place, self._name)
        assert isinstance(storage, RDBStorage)
        event.listen(storage.engine, "connect", self._connected)
        event.listen(storage.engine, "before_cursor_execute", self._executed)
        return storage

    @property
    def version(self) -> int:
        """A number that stays while nobody can have written; -1 outside of a turn, where others can."""
        return self._changes if self._depth else -1

    @property
    def lately(self) -> int:
        """A number that stays while nobody can have written; outside of a turn, where others can, for ``FRESH`` seconds at most."""
        if not self._depth and time.monotonic() > self._fresh:
            self._changes, self._fresh = self._changes + 1, time.monotonic() + FRESH
        return self._changes

    def do(self, call: Callable[[], Kept]) -> Kept:
        """What ``call`` returns in a turn. If the turn is lost, it is called again."""
        def in_turn() -> Kept:
            with self:
                return call()

        return self.patiently(in_turn)

    def patiently(self, call: Callable[[], Kept]) -> Kept:
        """What ``call``, which reads, returns. Outside of a turn it is called again while the database is away."""
        until, told = time.monotonic() + AWAY, False
        while True:
            try:
                return call()
            except (TurnLost, StorageInternalError, SQLAlchemyError) as error:
                if self._depth or not _away(error) or time.monotonic() > until:
                    raise
            if not told:
                self._note(f"the database at {self._place} is away; this worker waits for it")
            told = True
            time.sleep(PAUSE)

    def __enter__(self) -> None:
        if not self._depth:
            _wait(self._execute, self._place.kind, "has had its turn", self._note)
            self._changes += 1
        self._depth += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._depth == 1:
            try:
                self._execute(_UNLOCK[self._place.kind])
            except (TurnLost, SQLAlchemyError):
                self.storage.engine.dispose()  # the lock goes with the connection
            self._fresh = time.monotonic() + FRESH
        self._depth -= 1

    def close(self) -> None:
        """Let go of the connection, until it is needed again."""
        if "storage" in self.__dict__:
            self.storage.engine.dispose()

    def _execute(self, statement: str, **values: Any) -> list[Any]:
        with self.storage.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            return list(connection.execute(text(statement), {"key": self._key, **values} if ":key" in statement else values))

    def _connected(self, *_: object) -> None:
        if self._depth:
            raise TurnLost("the connection to the database was lost in a turn")

    def _executed(self, _: object, __: object, statement: str, *___: object) -> None:
        self._changes += statement.lstrip().upper().startswith(_WRITES)


def held(place: Place, worker: str, what: str, note: Callable[[str], None]) -> Connection:
    """A connection that has the lock ``what`` of the study, until it is closed.

    Args:
        worker: its name, as its heart has it.
        note: told who has the lock, after each minute of waiting.
    """
    connection = engine(place, worker).connect().execution_options(isolation_level="AUTOCOMMIT")
    key = _key(place.kind, f"study {place.study} {what}")

    def execute(statement: str, **values: Any) -> list[Any]:
        return list(connection.execute(text(statement), {"key": key, **values} if ":key" in statement else values))

    try:
        _wait(execute, place.kind, f"has been at the {what}", note)
    except BaseException:
        connection.close()
        raise
    return connection


def held_free(place: Place, worker: str, names: Sequence[str], most: int) -> tuple[list[str], Connection]:
    """The first of ``names`` of the study whose locks nobody has, ``most`` at most, and a connection that has these until it is closed.

    Args:
        worker: its name, as its heart has it.
    """
    connection, found = engine(place, worker).connect().execution_options(isolation_level="AUTOCOMMIT"), list[str]()
    attempt = text(_TRY[place.kind])
    try:
        for name in names:
            if len(found) < most and connection.execute(attempt, {"key": _key(place.kind, f"study {place.study} {name}")}).scalar():
                found.append(name)
    except BaseException:
        connection.close()
        raise
    return found, connection


def _wait(execute: Callable[..., list[Any]], kind: str, does: str, note: Callable[[str], None]) -> None:
    """Wait for a lock; tell who has it, and take it away from a worker that was not heard of for ``GRACE`` seconds."""
    while not _acquired(execute, kind):
        for pid, name, silent in execute(_HOLDER, grace=GRACE) if kind == "postgresql" else ():
            note(f"{name} {does} for more than {LOCK_TIMEOUT:.0f} s; this one {'takes it over' if silent else 'waits'}")
            if silent:
                execute("SELECT pg_terminate_backend(:pid)", pid=pid)


def _acquired(execute: Callable[..., list[Any]], kind: str) -> bool:
    try:
        return bool(execute(_LOCK[kind])[0][0])
    except OperationalError as error:
        if getattr(error.orig, "sqlstate", None) == "55P03":  # lock_timeout
            return False
        raise


def _key(kind: str, name: str) -> int | str:
    """The lock called ``name``."""
    digest = hashlib.sha256(f"lrsearch {name}".encode())
    return int.from_bytes(digest.digest()[:8]) >> 2 if kind == "postgresql" else f"lrsearch {digest.hexdigest()[:40]}"


def _away(error: Exception) -> bool:
    """Whether ``error`` is of a database that does not answer; Optuna may have tried again in the same transaction before it told."""
    chain: list[BaseException] = [error]
    while before := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(before)
    gone = (isinstance(each, DBAPIError) and each.connection_invalidated for each in chain)
    return any(gone) or any(isinstance(each, TurnLost | OperationalError | InterfaceError) for each in chain)
