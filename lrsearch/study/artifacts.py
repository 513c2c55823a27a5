"""Large files that several machines share, in an artifact store of Optuna's: a folder that all of them have, or a bucket of S3.

A blob is kept under its sha256, so that what is there never changes, and a note beside it says which one its name stands for. What is read
is checked. Where the store is away, it is tried again for about a minute; what cannot be read then counts as not there, and is made again.
"""

import hashlib
import io
import logging
import re
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from optuna.artifacts import Boto3ArtifactStore, FileSystemArtifactStore
from optuna.artifacts._protocol import ArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound

from lrsearch.errors import StudyError
from lrsearch.spec.blobs import LocalStore

WAITS = [0.1 * 2**i for i in range(9)]  # seconds until a store that is away is tried again, 51 in all
log = logging.getLogger("lrsearch")
Kept = TypeVar("Kept")
_NOTE = ".sha256"
_NAME = re.compile(r"\w+(/\w[\w.-]*)+")  # whoever can write to the store cannot name a file outside of the study folder
_Listed = Callable[[str], Iterable[str]]


class SharedBlobs:
    """A :class:`~lrsearch.spec.blobs.BlobStore` of all workers of a study.

    Args:
        local: where files are put that must lie on this machine.
        place: a folder, ``s3://BUCKET`` or ``s3://BUCKET/PREFIX``.
        study: the name of the study; several may be in one place.
        constant: what a name stands for never changes, so that what lies here is not compared with the store, and stays here.

    Raises:
        StudyError: the place is none of them, or needs a driver.
    """

    def __init__(self, local: LocalStore, place: str, study: str, constant: bool = False) -> None:
        self._local, self._study, self._constant = local, re.sub(r"[^\w-]", "_", study), constant
        self._under = "".join(f"{part}/" for part in place.partition("://")[2].split("/")[1:] if part)
        self._place = place
        self._store: ArtifactStore
        self._store, self._listed, self._errors = _folder(Path(place)) if "://" not in place else _bucket(place)

    def put(self, name: str, content: bytes) -> None:
        """See :meth:`BlobStore.put`."""
        if self._constant:
            self._local.put(name, content)
        digest, before = hashlib.sha256(content).hexdigest(), self._digest(name)
        try:
            for ending, data in ((f".{digest}", content), (_NOTE, digest.encode())):
                self._patiently(partial(self._write, self._key(name, ending), data))
        except self._errors as error:
            raise OSError(f"{name} cannot be put into the artifact store: {error}") from error
        if before not in (None, digest):
            self._remove(self._key(name, f".{before}"))

    def get(self, name: str) -> bytes | None:
        """See :meth:`BlobStore.get`."""
        if (digest := self._digest(name)) is None:
            return None
        data = self._read(self._key(name, f".{digest}"))
        return data if data is not None and hashlib.sha256(data).hexdigest() == digest else None

    def local(self, name: str) -> Path | None:
        """See :meth:`BlobStore.local`; it is fetched unless it lies here already."""
        if self._constant and (path := self._local.local(name)):
            return path
        here = self._local.get(name)
        if here is None or hashlib.sha256(here).hexdigest() != self._digest(name):
            if (data := self.get(name)) is None:
                return None
            self._local.put(name, data)
        return self._local.local(name)

    def exists(self, name: str) -> bool:
        """See :meth:`BlobStore.exists`."""
        return self._digest(name) is not None

    def remove(self, name: str) -> None:
        """See :meth:`BlobStore.remove`; the note goes first."""
        digest = self._digest(name)
        for ending in (_NOTE, f".{digest}"):
            self._remove(self._key(name, ending))
        self._local.remove(name)

    def list(self, prefix: str) -> "list[str]":
        """See :meth:`BlobStore.list`; also what lies on this machine alone."""
        names = {*self._local.list(prefix)}
        with suppress(*self._errors):
            notes = (key for key in self._listed(self._key(prefix, "")) if key.endswith(_NOTE))
            names |= {note.removeprefix(self._key("", "")).removesuffix(_NOTE).replace("--", "/") for note in notes}
        return sorted(name for name in names if _NAME.fullmatch(name))

    def _key(self, name: str, ending: str) -> str:
        return f"{self._under}{self._study}.{name.replace('/', '--')}{ending}"

    def _digest(self, name: str) -> str | None:
        """The sha256 of what ``name`` stands for; None if there is nothing."""
        note = (self._read(self._key(name, _NOTE)) or b"").decode(errors="replace")
        return note if re.fullmatch(r"[0-9a-f]{64}", note) else None

    def _read(self, key: str) -> bytes | None:
        def read() -> bytes:
            with self._store.open_reader(key) as file:
                return file.read()

        with suppress(ArtifactNotFound, *self._errors):
            return self._patiently(read)
        return None

    def _write(self, key: str, content: bytes) -> None:
        self._store.write(key, io.BytesIO(content))

    def _patiently(self, call: Callable[[], Kept]) -> Kept:
        """What ``call`` returns; it is called again while the store is away."""
        for wait in WAITS:
            try:
                return call()
            except ArtifactNotFound:
                raise
            except self._errors as error:
                if wait == WAITS[0]:
                    log.warning("the artifact store %s is away, and is tried again for %.0f s: %s", self._place, sum(WAITS), error)
            time.sleep(wait)
        return call()

    def _remove(self, key: str) -> None:
        with suppress(ArtifactNotFound, *self._errors):
            self._store.remove(key)


def _folder(path: Path) -> tuple[FileSystemArtifactStore, _Listed, tuple[type[Exception], ...]]:
    """A folder as a store, what lists its keys, and the errors of it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        rule, remedy = "must be a folder that can be written, or s3://BUCKET/PREFIX", "Give another --artifacts."
        raise StudyError(rule, value=error.strerror, place=str(path), remedy=remedy) from None
    return FileSystemArtifactStore(path), lambda prefix: (p.name for p in path.iterdir() if p.name.startswith(prefix)), (OSError,)


def _bucket(place: str) -> tuple[Boto3ArtifactStore, _Listed, tuple[type[Exception], ...]]:
    """The same of a bucket that can be reached."""
    kind, _, rest = place.partition("://")
    bucket = rest.partition("/")[0]
    if kind != "s3" or not bucket:
        rule, remedy = "must be a folder, or s3://BUCKET/PREFIX", "For example s3://studies."
        raise StudyError(rule, value=f"{kind}://…", place="artifacts", remedy=remedy)
    try:
        from botocore.exceptions import BotoCoreError, ClientError

        store = Boto3ArtifactStore(bucket)
    except ImportError:
        raise StudyError("S3 needs its driver", value=place, place="artifacts", remedy="pip install 'lrsearch[s3]'") from None
    try:
        store.client.list_objects_v2(Bucket=bucket, MaxKeys=1)
    except (BotoCoreError, ClientError) as error:
        rule, remedy = "must be a bucket that can be reached", "Check its name, AWS_ENDPOINT_URL_S3 and the keys, as boto3 finds them."
        raise StudyError(rule, value=str(error), place=place, remedy=remedy) from None

    def listed(prefix: str) -> Iterable[str]:
        pages: Any = store.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return (found["Key"] for page in pages for found in page.get("Contents", ()))

    return store, listed, (OSError, BotoCoreError, ClientError)
