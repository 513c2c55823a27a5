"""The loaded model's latency beside the dense model's, in one interleaved run."""

from collections.abc import Collection
from pathlib import Path

import torch
from torch import nn

from lrsearch.deploy.deployed import deployed
from lrsearch.latency.backends import Backend, OnnxBackend, backend
from lrsearch.latency.runner import WHOLE_ROUNDS, Runner, cpu, interleaved
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
    found.figures |= {
        "latency_ms": ours.ms, "latency_ms_ratio": ours.ms / theirs.ms, "dense_latency_ms": theirs.ms,
        "latency_p10": ours.p10, "latency_median": ours.median, "latency_p90": ours.p90,
        "dense_latency_p10": theirs.p10, "dense_latency_median": theirs.median, "dense_latency_p90": theirs.p90,
    }
    found.conditions |= {"latency": f"{config.backend} {runtime.version()}, threads {config.threads}, batch {config.batch}"}


def _runners(runtime: Backend, path: Path, small: nn.Module, x: Inputs, threads: int, fixed: bool) -> list[Runner]:
    """Calls of the file itself, where the runtime reads it and its batch is the one to time."""
    if fixed and path.exists() and isinstance(runtime, OnnxBackend):
        return runtime.load(path.read_bytes(), x, threads)
    return runtime.build(small, x, threads)
