"""A survey timed on another machine: its models and a runner go there as files, the times come back."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lrsearch.deploy.onnx_export import arrays
from lrsearch.deploy.onnx_graph import onnx_model
from lrsearch.errors import LatencyError
from lrsearch.latency import runner
from lrsearch.latency.runner import Timing
from lrsearch.latency.survey import Survey, in_precision
from lrsearch.latency.table import Conditions, LatencyTable
from lrsearch.spec.atomic import write_whole
from lrsearch.spec.config import Precision

BACKEND, JOBS = "onnxruntime", "jobs.json"  # what runner.py runs, and reads


def pack(survey: Survey, folder: Path, threads: int, advance: Callable[[], None], precision: Precision = "float32") -> None:
    """Write ONNX models and ``runner.py`` to ``folder``, for a machine that has but ONNX Runtime.

    Raises:
        LatencyError: the folder cannot be written, or holds something else.
    """
    try:
        refuse_strangers(folder)
        (folder / "models").mkdir(parents=True, exist_ok=True)
        _write_jobs(folder, "unfinished", threads, [])  # it also says whose folder it is
        names = []
        for number, (module, x) in enumerate(survey.models()):
            names.append(f"models/{number:04d}.onnx")
            _write(folder / names[-1], in_precision(onnx_model(module, x), precision))
            if number == 0:  # the whole model: what it reads may not be random, such as tokens; what a layer alone reads may
                whole = io.BytesIO()
                np.savez(whole, *arrays(x).values())
                _write((folder / names[-1]).with_suffix(".npz"), whole.getvalue())
            advance()
        _write(folder / "runner.py", Path(runner.__file__).read_bytes())
        _write_jobs(folder, survey.fingerprint(_conditions(survey, threads, precision)), threads, names)
    except OSError as error:
        raise LatencyError(
            "the folder must be writable", value=error.strerror or "?", place=str(folder), remedy="Give another --out.",
        ) from None


def refuse_strangers(folder: Path) -> None:
    """Check that ``folder`` is missing, empty, or was written by :func:`pack`.

    Raises:
        LatencyError: it is something else.
        OSError: it cannot be read.
    """
    if not folder.is_dir() or not (names := sorted(path.name for path in folder.iterdir())):
        return
    try:
        packed = {"fingerprint", "threads", "models"} <= json.loads((folder / JOBS).read_text()).keys()
    except (OSError, ValueError, AttributeError):
        packed = False
    if not packed or (folder / "models").is_symlink():
        raise LatencyError(
            "only a packed folder may be packed again", value=f"a folder with {', '.join(names[:3])}", place=str(folder),
            remedy="Give another --out.",
        )


def _write_jobs(folder: Path, fingerprint: str, threads: int, models: list[str]) -> None:
    whole = {"fingerprint": fingerprint, "threads": threads, "models": models}
    _write(folder / JOBS, (json.dumps(whole, indent=1) + "\n").encode())


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all; a link at ``path`` is replaced, not followed."""
    write_whole(path, data)


def ingest(survey: Survey, folder: Path, threads: int, precision: Precision = "float32") -> LatencyTable:
    """The table of what another machine wrote to ``times.json``.

    Raises:
        LatencyError: there is none, or it is of another study.
    """
    path = folder / "times.json"
    remedy = "Run runner.py of the folder that lrsearch latency pack wrote, and bring its times.json back."
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        times = [Timing(*t) for t in found["times"]]
        where = {k: found[k] for k in ("version", "cpu", "load", "date")}
        packed = found["fingerprint"]
    except OSError as error:
        raise LatencyError("the file must be readable", value=error.strerror or "?", place=str(path), remedy=remedy) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LatencyError("must be as runner.py wrote it", value=repr(error), place=str(path), remedy=remedy) from None
    conditions = _conditions(survey, threads, precision)
    if packed != (wanted := survey.fingerprint(conditions)) or len(times) != len(survey.jobs) + 1:
        raise LatencyError(
            "the times must be of this study", value=f"fingerprint {packed}, not {wanted}", place=str(path),
            remedy="Pack the study again: its model, space, threads, batch or precision changed.",
        )
    return survey.table(replace(conditions, **where), times)


def _conditions(survey: Survey, threads: int, precision: Precision) -> Conditions:
    return survey.conditions(BACKEND, threads, "elsewhere", precision)
