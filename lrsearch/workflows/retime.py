"""The loaded model's latency beside the dense model's, in one interleaved run."""

from collections.abc import Collection
from pathlib import Path

import torch
from torch import nn

from lrsearch.deploy.deployed import deployed
from lrsearch.errors import ArtifactError
from lrsearch.latency.backends import BACKENDS, Backend, OnnxBackend, backend
from lrsearch.latency.runner import WHOLE_ROUNDS, Runner, Timing, cpu, interleaved
from lrsearch.report.certificate import ONNX, Origin
from lrsearch.spec.config import LatencyConfig
from lrsearch.task.forward import Inputs, batches_of
from lrsearch.workflows.findings import Findings


def retime(
    found: Findings, folder: Path, model: nn.Module, base: nn.Module, sample: Inputs, origin: Origin, merged: Collection[str],
) -> None:
    """Time both, deployed, on the study's backend; on ONNX Runtime, for information, if the study has none."""
    config = origin.config.latency or LatencyConfig()
    found.attempt(["latency"], lambda: _time(found, folder, model, base, batches_of(sample, config.batch), origin, merged))
    _refuse_other_processor(found, origin)


def retime_file(found: Findings, folder: Path, sample: Inputs | None, origin: Origin, why: str) -> None:
    """Time the exported ONNX file alone, where the study's backend reads it; else latency is not checked, because of ``why``."""
    config = origin.config.latency
    found.unchecked["latency"] = why
    if config and sample is not None and (folder / ONNX).exists() and isinstance(BACKENDS.get(config.backend), OnnxBackend):
        del found.unchecked["latency"]
        found.attempt(["latency"], lambda: _time_file(found, folder / ONNX, batches_of(sample, config.batch), config))
        _refuse_other_processor(found, origin)


def _time_file(found: Findings, path: Path, x: Inputs, config: LatencyConfig) -> None:
    runtime, threads = backend(config.backend), torch.get_num_threads()
    assert isinstance(runtime, OnnxBackend)
    try:
        (ours,) = interleaved([runtime.load(path.read_bytes(), x, config.threads)], config.threads, rounds=WHOLE_ROUNDS)
    except Exception as error:
        raise ArtifactError(
            f"{config.backend} must be able to run the model", value=f"{type(error).__name__}: {error}", place=str(path),
            remedy="Export again.",
        ) from error
    finally:
        torch.set_num_threads(threads)
    found.figures |= _percentiles("latency", ours)
    found.conditions |= _conditions(runtime, config)


def _percentiles(name: str, timing: Timing) -> dict[str, float]:
    return {f"{name}_ms": timing.ms, f"{name}_p10": timing.p10, f"{name}_median": timing.median, f"{name}_p90": timing.p90}


def _conditions(runtime: Backend, config: LatencyConfig) -> dict[str, str]:
    return {"latency": f"{config.backend} {runtime.version()}, threads {config.threads}, batch {config.batch}"}


def _refuse_other_processor(found: Findings, origin: Origin) -> None:
    if origin.config.latency and origin.cpu and origin.cpu != cpu():
        found.unchecked["latency"] = f"the study's latencies are of {origin.cpu}, this is {cpu()}"


def _time(
    found: Findings, folder: Path, model: nn.Module, base: nn.Module, x: Inputs, origin: Origin, merged: Collection[str],
) -> None:
    config = origin.config.latency or LatencyConfig()
    runtime, threads = backend(config.backend), torch.get_num_threads()
    try:
        dense = runtime.build(deployed(base, x), x, config.threads)
        mine = _runners(runtime, folder / ONNX, deployed(model, x, merged), x, config.threads, bool(origin.config.latency))
        ours, theirs = interleaved([mine, dense], config.threads, rounds=WHOLE_ROUNDS)
    finally:
        torch.set_num_threads(threads)
    found.figures |= {**_percentiles("latency", ours), "latency_ms_ratio": ours.ms / theirs.ms, **_percentiles("dense_latency", theirs)}
    found.conditions |= _conditions(runtime, config)


def _runners(runtime: Backend, path: Path, small: nn.Module, x: Inputs, threads: int, fixed: bool) -> list[Runner]:
    """Calls of the file itself, where the runtime reads it and its batch is the one to time."""
    if fixed and path.exists() and isinstance(runtime, OnnxBackend):
        return runtime.load(path.read_bytes(), x, threads)
    return runtime.build(small, x, threads)
