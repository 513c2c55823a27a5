"""Where large things are kept by name: losses, paused finetunes, the layers of a profile.

:class:`BlobStore` is all that the rest asks for, so that they may lie elsewhere than in a folder of this machine.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from lrsearch.spec.atomic import WRITING, write_whole

SEALS = "seals"


class BlobStore(Protocol):
    """Bytes by name, such as ``losses/0003-0.f16``. What is damaged counts as not there."""

    def put(self, name: str, content: bytes) -> None:
        """Keep ``content``, whole or not at all."""

    def get(self, name: str) -> bytes | None:
        """The bytes kept under ``name``, or None if there are none that are as they were put."""

    def local(self, name: str) -> Path | None:
        """A file of this machine with what is kept under ``name``, or None; it is checked once."""

    def exists(self, name: str) -> bool:
        """Whether something is kept under ``name``; what is in it is not looked at."""

    def remove(self, name: str) -> None:
        """Forget ``name``, if it is known."""

    def list(self, prefix: str) -> "list[str]":
        """The names that begin with ``prefix``, in order."""


class LocalStore:
    """A :class:`BlobStore` in a folder: each blob at its name, its sha256 at the same name below ``seals``.

    The seal is replaced first. A process that dies between the two leaves a blob that counts as damaged, and is made again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._checked: dict[str, tuple[int, int]] = {}  # name → size and time of the file that was checked

    def put(self, name: str, content: bytes) -> None:
        """See :meth:`BlobStore.put`."""
        path, seal = self.folder / name, self._seal(name)
        for parent in (path.parent, seal.parent):
            parent.mkdir(parents=True, exist_ok=True)
        write_whole(seal, hashlib.sha256(content).hexdigest())
        write_whole(path, content)

    def get(self, name: str) -> bytes | None:
        """See :meth:`BlobStore.get`."""
        try:
            data, seal = (self.folder / name).read_bytes(), self._seal(name).read_text()
        except (OSError, ValueError):
            return None
        return data if hashlib.sha256(data).hexdigest() == seal else None

    def local(self, name: str) -> Path | None:
        """See :meth:`BlobStore.local`; a file that changed since is checked again."""
        path = self.folder / name
        try:
            stat = path.stat()
            if self._checked.get(name) == (stat.st_size, stat.st_mtime_ns):
                return path
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != self._seal(name).read_text():
                return None
        except (OSError, ValueError):
            return None
        self._checked[name] = stat.st_size, stat.st_mtime_ns
        return path

    def exists(self, name: str) -> bool:
        """See :meth:`BlobStore.exists`."""
        return (self.folder / name).exists()

    def remove(self, name: str) -> None:
        """See :meth:`BlobStore.remove`."""
        for path in (self.folder / name, self._seal(name)):
            path.unlink(missing_ok=True)

    def list(self, prefix: str) -> "list[str]":
        """See :meth:`BlobStore.list`; also what a killed process left half written."""
        folder = (self.folder / f"{prefix}_").parent
        files = (path for path in folder.glob("*") if path.is_file() and not path.is_symlink())
        names = (path.relative_to(self.folder).as_posix() for path in files)
        return sorted(name for name in names if name.startswith(prefix))

    def adopt(self, names: Iterable[str]) -> None:
        """Seal blobs of older versions, which had no seals, as they are."""
        for name in names:
            path, seal = self.folder / name, self._seal(name)
            if not seal.exists() and path.is_file() and WRITING not in name:
                seal.parent.mkdir(parents=True, exist_ok=True)
                write_whole(seal, hashlib.sha256(path.read_bytes()).hexdigest())

    def _seal(self, name: str) -> Path:
        return self.folder / SEALS / name
