"""Locks of files that are waited for, however long it takes, by whoever says so."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

PATIENCE = 60.0  # seconds until who waits says so, again and again


@contextmanager
def waited_for(path: Path, tell: Callable[[], None]) -> Iterator[None]:
    """The lock at ``path``; ``tell`` is called after each minute of waiting."""
    lock = FileLock(path)
    while not lock.is_locked:
        try:
            lock.acquire(timeout=PATIENCE)
        except Timeout:
            tell()
    try:
        yield
    finally:
        lock.release()
