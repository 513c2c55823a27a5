"""Heartbeats: a worker tells a shared database that it lives, and at which trial it is; whoever is silent for too long is dead.

A trial's first heartbeat is recorded in the turn in which it is begun. So a trial that is under way without one, as another turn sees it,
is of a worker that died in between. The clock is that of the database.
"""

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property

from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial
from sqlalchemy import column, select, table, text

from lrsearch.study import storage
from lrsearch.study.storage import Place, opened

_HEARTBEATS = table("trial_heartbeats", column("trial_id"))


class Heart:
    """The heartbeat of one worker, by a connection of its own.

    Args:
        place: the study.
        name: that the database shows for the worker.
    """

    def __init__(self, place: Place, name: str) -> None:
        self._place, self._name = place, name
        self._trial: int | None = None
        self._looked = -float("inf")
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    @cached_property
    def _storage(self) -> RDBStorage:
        found = opened(self._place, self._name, heartbeat=True)
        assert isinstance(found, RDBStorage)
        return found

    def start(self) -> None:
        """Beat from now on."""
        self._stopped.clear()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Beat no more."""
        self._stopped.set()
        if self._thread:
            self._thread.join()
        if "_storage" in self.__dict__:
            self._storage.engine.dispose()

    def begin(self, trial: int, own: RDBStorage) -> None:
        """Record the first heartbeat of ``trial``, in the turn of the connection ``own``, and go on with it."""
        own.record_heartbeat(trial)
        self._trial = trial

    def end(self) -> None:
        """The trial is over."""
        self._trial = None

    def dead(self, study: int, running: Sequence[FrozenTrial]) -> set[int]:
        """The ids of those ``running`` trials whose workers are dead; looked for in every second interval, by a worker in its turn."""
        if not running or time.monotonic() < self._looked + storage.INTERVAL / 2:
            return set()
        self._looked, ids = time.monotonic(), {trial._trial_id for trial in running}
        with self._storage.engine.connect() as connection:
            known = set(connection.scalars(select(_HEARTBEATS.c.trial_id).where(_HEARTBEATS.c.trial_id.in_(ids))))
        return (ids - known) | (ids & {*self._storage._get_stale_trial_ids(study)})

    def _beat(self) -> None:
        while not self._stopped.wait(storage.INTERVAL):
            with suppress(Exception):  # where the database is away the next beat tells
                if (trial := self._trial) is not None:
                    self._storage.record_heartbeat(trial)
                else:
                    with self._storage.engine.connect() as connection:
                        connection.execute(text("SELECT 1"))
