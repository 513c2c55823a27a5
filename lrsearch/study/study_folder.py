"""The study folder: made by lrsearch and marked as such. In any other folder nothing is written and nothing removed.

The mark is ``lrsearch-study.json``, which names the schema of the folder. Folders of before the mark are known by their ``study.json``.
"""

import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from lrsearch.errors import StudyError

MARK, SCHEMA = "lrsearch-study.json", 1
STORAGE, IDENTITY, DOOR, TURN, WORKERS = "study.db", "study.json", "study.lock", "turn.lock", "workers"
WORKER = re.compile(r"[0-9a-f]{32}")
_WRITING = f"{MARK}.writing"
_UNMARKED = {DOOR, _WRITING}  # what is there before the mark
_PREPARED = re.compile(r"lrsearch-study\.json.*|study\.(json|writing|lock)|turn\.lock|search\.log|(latency|latency_late|space)\.json.*")
_WRITTEN = re.compile(
    r"(lrsearch-study|study|front|latency|latency_front|latency_late|space|fidelity|recovering-\d+)\..*"
    r"|turn\.lock|search\.log|workers|models|(paused|losses)(/\d{4,}\D.*)?",
)


def refuse_foreign(folder: Path) -> None:
    """Check that ``folder`` is a study, or may become one: missing, or empty.

    Raises:
        StudyError: it holds what lrsearch did not make, is of another schema, or has a link where the study writes.
        OSError: it cannot be read.
    """
    if not folder.is_dir():
        return
    marked = read_json(folder / MARK).get("schema")
    if marked not in (None, SCHEMA):
        rule, remedy = f"the study folder must be of schema {SCHEMA}", "Use the lrsearch that made it, or give another --out."
        raise StudyError(rule, value=f"schema {marked}", place=str(folder), remedy=remedy)
    foreign = sorted({path.name for path in folder.iterdir()} - _UNMARKED)
    if foreign and not marked and not {"inputs", "config", "fingerprint"} <= read_json(folder / IDENTITY).keys():
        raise StudyError(
            "must be a study that lrsearch made, or an empty folder", value=f"a folder with {', '.join(foreign[:3])}", place=str(folder),
            remedy="Give another --out.",
        )
    for path in (p for part in (folder, folder / "paused", folder / "losses") if part.is_dir() for p in part.iterdir()):
        if path.is_symlink() and _WRITTEN.fullmatch(path.relative_to(folder).as_posix()):
            raise StudyError("a study writes to no links", value="a link", place=str(path), remedy="Remove it, or give another --out.")


def mark(folder: Path) -> None:
    """Mark ``folder`` as a study."""
    if read_json(folder / MARK).get("schema") != SCHEMA:
        (folder / _WRITING).write_text(json.dumps({"schema": SCHEMA}) + "\n")
        os.replace(folder / _WRITING, folder / MARK)


def clear(folder: Path) -> None:
    """Remove what a study wrote that was refused before its first trial; nothing, if anything else is in ``folder``."""
    workers = folder / WORKERS
    files = [path for path in folder.iterdir() if path != workers]
    names = list(workers.iterdir()) if workers.is_dir() else []
    if all(_PREPARED.fullmatch(p.name) for p in files) and all(WORKER.fullmatch(p.name) for p in names):
        for path in (*names, *files):
            path.unlink(missing_ok=True)
        with suppress(OSError):
            workers.rmdir()


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file; an empty one if it is missing or holds anything else."""
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
