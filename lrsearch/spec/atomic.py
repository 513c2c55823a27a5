"""Files that are written whole or not at all, and JSON files that say whether they are as they were written."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

WRITING = ".writing"  # in the names of scratch files, which a killed process leaves behind
SEAL = "sha256"


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A scratch file beside ``path``, of a name that no other process has; it takes the place of ``path`` unless an error is raised."""
    scratch = path.with_name(f"{path.name}{WRITING}-{uuid4().hex}")
    try:
        yield scratch
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def write_whole(path: Path, data: bytes | str) -> None:
    """Replace what is at ``path`` by ``data``, text as UTF-8: who reads it sees the old or the new, never a part."""
    with whole_file(path) as scratch:
        scratch.write_bytes(data.encode() if isinstance(data, str) else data)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """``data`` as JSON, with a digest of itself, so that damage is noticed."""
    write_whole(path, json.dumps({SEAL: _digest(data), **data}, indent=1) + "\n")


def read_sealed(path: Path) -> dict[str, Any]:
    """What :func:`write_json` wrote; a file without a digest, as older versions wrote it, is taken as it is.

    Raises:
        ValueError: it is no JSON mapping, or not as it was written.
        OSError: it cannot be read.
    """
    try:
        data = json.loads(path.read_bytes().decode())
    except RecursionError as error:
        raise ValueError("too deep") from error
    if not isinstance(data, dict):
        raise ValueError(f"a mapping is wanted, not {type(data).__name__}")
    seal = data.pop(SEAL, None)
    if seal is not None and seal != _digest(data):
        raise ValueError("it is not as it was written")
    return data


def read_json(path: Path) -> dict[str, Any]:
    """The same; an empty mapping if it is missing, damaged or anything else."""
    try:
        return read_sealed(path)
    except (OSError, ValueError):
        return {}


def _digest(data: Mapping[str, Any]) -> str:
    """Of what JSON keeps of ``data``."""
    return hashlib.sha256(json.dumps(json.loads(json.dumps(data)), sort_keys=True).encode()).hexdigest()
