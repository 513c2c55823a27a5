"""A survey timed on another machine: its models and a runner go there as files, the times come back."""

import json
import shutil
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
from lrsearch.latency.survey import Survey
from lrsearch.latency.table import Conditions, LatencyTable

BACKEND = "onnxruntime"  # what runner.py runs


def pack(survey: Survey, folder: Path, threads: int, advance: Callable[[], None]) -> None:
    """Write ONNX models and ``runner.py`` to ``folder``, for a machine that has but ONNX Runtime.

    Raises:
        LatencyError: the folder cannot be written.
    """
    try:
        (folder / "models").mkdir(parents=True, exist_ok=True)
        names = []
        for number, (module, x) in enumerate(survey.models()):
            names.append(f"models/{number:04d}.onnx")
            (folder / names[-1]).write_bytes(onnx_model(module, x))
            if number == 0:  # the whole model: what it reads may not be random, such as tokens; what a layer alone reads may
                np.savez((folder / names[-1]).with_suffix(".npz"), *arrays(x).values())
            advance()
        shutil.copyfile(runner.__file__, folder / "runner.py")
        whole = {"fingerprint": _packed(survey, threads), "threads": threads, "models": names}
        (folder / "jobs.json").write_text(json.dumps(whole, indent=1) + "\n")
    except OSError as error:
        raise LatencyError(
            "the folder must be writable", value=error.strerror or "?", place=str(folder), remedy="Give another --out.",
        ) from None


def ingest(survey: Survey, folder: Path, threads: int) -> LatencyTable:
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
    except (ValueError, KeyError, TypeError) as error:
        raise LatencyError("must be as runner.py wrote it", value=repr(error), place=str(path), remedy=remedy) from None
    if packed != _packed(survey, threads) or len(times) != len(survey.jobs) + 1:
        raise LatencyError(
            "the times must be of this study", value=f"fingerprint {packed}, not {_packed(survey, threads)}", place=str(path),
            remedy="Pack the study again: its model, space, threads or batch changed.",
        )
    return survey.table(replace(_conditions(survey, threads), **where), times)


def _packed(survey: Survey, threads: int) -> str:
    return survey.fingerprint(_conditions(survey, threads))


def _conditions(survey: Survey, threads: int) -> Conditions:
    return survey.conditions(BACKEND, threads, "elsewhere")
