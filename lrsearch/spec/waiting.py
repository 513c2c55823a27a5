"""Locks of files that are waited for, however long it takes, by whoever says so."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

PATIENCE = 60.0  # seconds until who waits says so, again and again


@contextmanager
def first_free(paths: Sequence[Path], tell: Callable[[], None]) -> Iterator[Path]:
    """The lock at the first of ``paths`` that nobody has; where others have all of them, at the first of all, once it is free.

    Args:
        paths: of locks, one or more.
        tell: called after each minute of waiting.
    """
    lock = next((lock for lock in map(FileLock, paths) if _acquired(lock, 0)), FileLock(paths[0]))
    while not lock.is_locked and not _acquired(lock, PATIENCE):
        tell()
    try:
        yield Path(lock.lock_file)
    finally:
        lock.release()


@contextmanager
def waited_for(path: Path, tell: Callable[[], None]) -> Iterator[None]:
    """The lock at ``path``; ``tell`` is called after each minute of waiting."""
    with first_free([path], tell):
        yield


def _acquired(lock: FileLock, patience: float) -> bool:
    with suppress(Timeout):
        lock.acquire(timeout=patience)
    return lock.is_locked
