"""The loaded model's latency beside the dense model's, in one interleaved run."""

from collections.abc import Collection
from pathlib import Path

import torch
from torch import nn

from lrsearch.deploy.deployed import deployed
from lrsearch.deploy.quantize import quantised_to_time
from lrsearch.errors import ArtifactError
from lrsearch.latency.backends import BACKENDS, Backend, OnnxBackend, backend
from lrsearch.latency.runner import WHOLE_ROUNDS, Runner, Timing, cpu, interleaved, same_cpu
from lrsearch.report.certificate import ONNX, Origin
from lrsearch.spec.config import LatencyConfig
from lrsearch.task.forward import Inputs, batches_of, tensors
from lrsearch.task.sample import MOST_MADE_UP
from lrsearch.workflows.steps.findings import Findings


def retime(
    found: Findings, folder: Path, model: nn.Module, base: nn.Module, sample: Inputs, origin: Origin, merged: Collection[str],
) -> None:
    """Time both, deployed, on the study's backend; on ONNX Runtime, for information, if the study has none."""
    config = origin.config.latency or LatencyConfig()
    found.attempt(["latency"], lambda: _time(found, folder, model, base, _batch(sample, config), origin, merged))
    _refuse_other_processor(found, origin)


def retime_file(found: Findings, folder: Path, sample: Inputs | None, origin: Origin, why: str) -> None:
    """Time the exported ONNX file alone, where the study's backend reads it; else latency is not checked, because of ``why``."""
    config = origin.config.latency
    found.unchecked["latency"] = why
    if config and sample is not None and (folder / ONNX).exists() and isinstance(BACKENDS.get(config.backend), OnnxBackend):
        del found.unchecked["latency"]
        found.attempt(["latency"], lambda: _time_file(found, folder / ONNX, _batch(sample, config), config))
        _refuse_other_processor(found, origin)


def _batch(sample: Inputs, config: LatencyConfig) -> Inputs:
    """The inputs to time on, whose number the folder may have claimed.

    Raises:
        ArtifactError: they would be too many.
    """
    one = sum(t[0].numel() if t.dim() else 1 for t in tensors(sample))
    if config.batch * one > MOST_MADE_UP:
        raise ArtifactError(
            f"models are timed on inputs of at most {MOST_MADE_UP:,} values", value=f"{config.batch} of {one}", place="latency.batch",
            remedy="Give a smaller one.",
        )
    return batches_of(sample, config.batch)


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
    if origin.config.latency and origin.cpu and not same_cpu(origin.cpu, cpu()):
        found.unchecked["latency"] = f"the study's latencies are of {origin.cpu}, this is {cpu()}"


def _time(
    found: Findings, folder: Path, model: nn.Module, base: nn.Module, x: Inputs, origin: Origin, merged: Collection[str],
) -> None:
    """Time the file beside the dense model, of a study of latency in int8 too; ratios are of the one that its limits are shares of."""
    config = origin.config.latency or LatencyConfig()
    runtime, threads = backend(config.backend), torch.get_num_threads()
    try:
        small, whole = deployed(model, x, merged), deployed(base, x)
        own = bool(origin.config.latency) or origin.precision == "int8"
        built = {
            "latency": _runners(runtime, folder / ONNX, small, x, config.threads, own), **_dense(runtime, whole, x, config.threads, own),
        }
        times = dict(zip(built, interleaved(list(built.values()), config.threads, rounds=WHOLE_ROUNDS), strict=True))
    finally:
        torch.set_num_threads(threads)
    of_limits = times.get("dense_int8_latency" if origin.config.deploy.precision == "int8" else "dense_latency")
    for name, timing in times.items():
        found.figures |= _percentiles(name, timing)
    for name, other in (("latency_ms_ratio", of_limits), *((f"latency_ms_over_{n.removesuffix('_latency')}", t) for n, t in times.items())):
        if other and other is not times["latency"]:
            found.figures |= {name: times["latency"].ms / other.ms}
    found.conditions |= _conditions(runtime, config)


def _dense(runtime: Backend, whole: nn.Module, x: Inputs, threads: int, both: bool) -> dict[str, list[Runner]]:
    """The dense model in float32 and, of ``both`` where the runtime reads ONNX, in int8."""
    if not both or not isinstance(runtime, OnnxBackend):
        return {"dense_latency": runtime.build(whole, x, threads)}
    model = runtime.model(whole, x)
    return {"dense_latency": runtime.load(model, x, threads), "dense_int8_latency": runtime.load(quantised_to_time(model), x, threads)}


def _runners(runtime: Backend, path: Path, small: nn.Module, x: Inputs, threads: int, own: bool) -> list[Runner]:
    """Calls of the file itself, if it is to be, where the runtime reads it: its batch is the one to time, or it is in int8."""
    if own and path.exists() and isinstance(runtime, OnnxBackend):
        return runtime.load(path.read_bytes(), x, threads)
    return runtime.build(small, x, threads)
