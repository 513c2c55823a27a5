"""Whether anybody may have written to a study since its trials were read."""

import sqlite3

from lrsearch.study.storage import LOCK_TIMEOUT, Place
from lrsearch.study.turns import DatabaseTurn
from lrsearch.study.workers import Turn

_OPENED = 2**32  # more than SQLite counts


class Writes:
    """Those to the study at ``place``, whose turns are ``turn``."""

    def __init__(self, place: Place, turn: Turn | DatabaseTurn) -> None:
        self._place, self._turn = place, turn
        self._watch: sqlite3.Connection | None = None
        self._opened = 0

    def version(self) -> int:
        """SQLite's count of what connections but this one, which never writes, have written; -1 if it cannot be told.

        Elsewhere Optuna reads only what it has not seen finished, and nothing is read where nobody can have written, or just now.
        """
        if self._place.kind != "sqlite":
            return self._turn.lately
        try:
            if self._watch is None:
                url = f"{self._place.path.as_uri()}?mode=ro"
                self._watch = sqlite3.connect(url, LOCK_TIMEOUT, uri=True, check_same_thread=False)
                self._opened += 1  # each connection counts from its own start
            return self._opened * _OPENED + int(self._watch.execute("PRAGMA data_version").fetchone()[0])
        except sqlite3.Error:
            return -1

    def close(self) -> None:
        """Let go of the file until it is needed again."""
        if self._watch:
            self._watch.close()
            self._watch = None
