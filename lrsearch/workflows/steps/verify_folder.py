"""An exported folder → its certificate: everything loaded, counted, scored and timed anew."""

import hashlib
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lrsearch.compress import artifact
from lrsearch.compress.inventory import inventory
from lrsearch.compress.parametrised import copied
from lrsearch.compress.prepare import prepare
from lrsearch.deploy.deployed import deployed
from lrsearch.errors import ArtifactError
from lrsearch.latency.runner import surroundings
from lrsearch.measure.count import cost_model, dense_macs, recount
from lrsearch.measure.peak import peak_bytes
from lrsearch.report.certificate import ONNX, Certificate, Origin
from lrsearch.spec.cost import Budget, Cost
from lrsearch.spec.score import Score
from lrsearch.study.front_conditions import Condition, column_of, parse_conditions
from lrsearch.task.base import Task
from lrsearch.task.data import Examples
from lrsearch.task.forward import Inputs, rows, state_tensors
from lrsearch.task.sample import made_up
from lrsearch.version import __version__
from lrsearch.workflows.steps.findings import Findings
from lrsearch.workflows.steps.rescore import rescore
from lrsearch.workflows.steps.retime import retime
from lrsearch.workflows.steps.without_model import check_without_model

PACKAGES = ("torch", "onnxruntime", "openvino")


def verified_folder(folder: Path, origin: Origin) -> None:
    """Check that the files in ``folder`` are those that were exported.

    Raises:
        ArtifactError: one is missing, or not as it was.
    """
    for name, digest in origin.files.items():
        path = folder / name
        if Path(name).name != name:
            raise ArtifactError("must name files of the folder", value=name, place=str(folder), remedy="Copy the folder again.")
        try:
            found = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise ArtifactError(
                "the folder must be whole", value=error.strerror or "?", place=str(path), remedy="Copy the folder again, or export again.",
            ) from None
        if found != digest:
            raise ArtifactError(
                "every byte must be as it was exported", value=f"sha256 {found[:16]}…", place=str(path),
                remedy="Copy the folder again, or export again.",
            )


def digest(model: nn.Module) -> str:
    """Tells a model from others by the names and values of its state."""
    whole = hashlib.sha256()
    for name, tensor in state_tensors(model).items():
        flat = tensor.detach().cpu().contiguous().flatten()
        whole.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode() + flat.view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()[:16]


def refuse_other_base(base: nn.Module, origin: Origin) -> None:
    """Check that ``base`` is the dense model of the study.

    Raises:
        ArtifactError: it is not.
    """
    if origin.dense and (found := digest(base)) != origin.dense:
        raise ArtifactError(
            "the dense model must be the study's, value for value", value=f"{type(base).__name__}, digest {found}", place="model",
            remedy="Give the model and the checkpoint that the study was made with.",
        )


def verify_folder(
    folder: Path, base: nn.Module | None, origin: Origin, scoring: Examples | None, task: Task | None = None,
    why: str = "", why_no_metric: str = "", values: bool = True,
) -> Certificate:
    """Load the model in ``folder`` and find out all that was claimed of it. No code runs that the folder names.

    Args:
        folder: a model that a study saved, or an exported one.
        base: the dense model it was made from; not changed. Without, only what needs no model is checked.
        origin: where it comes from; its configuration gives limits, never code.
        scoring: data to score on; without, nothing is scored.
        task: the study's, with its metric; without, nothing is scored.
        why: there is no ``base``, or there are no data.
        why_no_metric: likewise.
        values: whether ``base`` has the values of the study's model; else only its layers are those.

    Raises:
        ArtifactError: a file is missing or not as it was, or the dense model is another one.
        ConfigError: there are neither data nor a shape of inputs.
    """
    verified_folder(folder, origin)
    _, about = artifact.read_plan(folder)
    found, dense = Findings(conditions=surroundings_of(about)), _claimed(folder, about)
    if base is None:
        check_without_model(found, folder, sample_of(origin, None) if origin.inputs else None, origin, about, why)
    else:
        model = artifact.load(folder, base)
        if values:
            refuse_other_base(base, origin)
        sample = sample_of(origin, scoring)
        base, model = copied(base).cpu().eval(), model.cpu()  # figures are of the processor, as is ONNX
        _count(found, folder, model, base, sample, about)
        if scoring is None:
            found.unchecked |= dict.fromkeys(("metric", "divergence", "onnx", *(() if values else ("dense model",))), why)
        else:
            rescore(found, folder, model, base, scoring, origin, about, task, why_no_metric)
        retime(found, folder, model, base, sample, origin, about.get("merged", ()))
    _limits(found, origin, dense, "it was not measured" if base else why)
    return Certificate(origin, tuple(found.checks), found.figures, found.unchecked, found.conditions)


def sample_of(origin: Origin, scoring: Examples | None) -> Inputs:
    """Two inputs: of the score data, else made-up ones of the look that was noted.

    Raises:
        ArtifactError: there is neither.
    """
    if scoring is not None:
        return scoring.sample()
    if not origin.inputs:
        raise ArtifactError("needs score data, or the shape of an input", value="neither", place="verify", remedy="Pass score=.")
    return made_up(origin.inputs)


def _claimed(folder: Path, about: Mapping[str, Any]) -> Cost:
    """The dense model's cost; all else that was claimed is there too.

    Raises:
        ArtifactError: it is not.
    """
    try:
        Cost.from_dict(about["cost"]), Score.of(about["score"]), Score.of(about["baseline"])
        return Cost.from_dict(about["dense"])
    except (KeyError, TypeError) as error:
        raise ArtifactError(
            "plan.json must be as lrsearch wrote it", value=repr(error), place=str(folder / artifact.PLAN), remedy="Copy the folder again.",
        ) from None


def surroundings_of(about: Mapping[str, Any]) -> dict[str, Any]:
    """Versions, processor, threads and date."""
    found = {"lrsearch": __version__, "made with lrsearch": about.get("lrsearch", "?"), "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return {**found, "torch threads": torch.get_num_threads(), "platform": platform.platform(), **surroundings()}


def _count(found: Findings, folder: Path, model: nn.Module, base: nn.Module, sample: Tensor, about: Mapping[str, Any]) -> None:
    claimed, dense_cost = about["cost"], about["dense"]
    size = (folder / artifact.WEIGHTS).stat().st_size
    counted = {**recount(model, sample).to_dict(), "weight_bytes": size}
    whole = recount(prepare(base, about.get("split", ())), sample).to_dict()  # what the study counted: tied weights once
    for metric in ("params", "macs", "nonzero_macs", "weight_bytes"):
        found.equal(metric, counted[metric], claimed[metric])
        found.figures |= {metric: counted[metric], f"{metric}_ratio": counted[metric] / dense_cost[metric]}
    _count_more(found, folder, base, sample, about)
    for metric in ("params", "macs"):
        found.equal(f"dense {metric}", whole[metric], dense_cost[metric])
    if (folder / ONNX).exists():
        found.figures |= {"onnx_bytes": (folder / ONNX).stat().st_size}

    def running() -> None:  # what runs: the compressed model itself unpacks S as it goes, and computes what only dropped columns read
        one = rows(sample, slice(0, 1))
        mine, dense = (deployed(m, sample, merged) for m, merged in ((model, about.get("merged", ())), (base, ())))
        found.figures |= {"deployed_macs": (macs := dense_macs(mine, one)), "deployed_macs_ratio": macs / dense_macs(dense, one)}
        found.figures |= {"peak_bytes": peak_bytes(mine, one), "dense_peak_bytes": peak_bytes(dense, one)}

    found.attempt(["peak_bytes"], running)


def _count_more(found: Findings, folder: Path, base: nn.Module, sample: Inputs, about: Mapping[str, Any]) -> None:
    """The metrics that were registered besides, where they are in this process too."""
    claimed, dense = Cost.from_dict(about["cost"]), Cost.from_dict(about["dense"])
    if not claimed.more:
        return
    plan, storage = artifact.read_plan(folder)[0], artifact.read_storage(folder, base)
    whole = prepare(base, about.get("split", ()))
    cost = cost_model(whole, inventory(whole, sample).layers, sample, storage.values)(plan)
    for metric, value in claimed.more.items():
        if metric not in cost.more:
            found.unchecked[metric] = "its class is not registered in this process: give --plugin"
            continue
        found.equal(metric, cost.more[metric], value)
        found.figures |= {metric: cost.more[metric], f"{metric}_ratio": cost.more[metric] / (dense.more.get(metric) or 1)}


def _limits(found: Findings, origin: Origin, dense: Cost, why: str) -> None:
    """The study's budgets, and the conditions by which the model was picked; ``why`` what has no figure is not checked."""
    for metric, limit in origin.config.budget.items():
        column = column_of(metric)
        most = limit if column != metric else Budget(**{metric: limit}).resolve(dense)[metric]
        _limit(found, f"budget {metric}", Condition(column, "<=", most), why)
    if (most_bytes := origin.config.deploy.onnx_bytes) is not None:
        _limit(found, "budget onnx_bytes", Condition("onnx_bytes", "<=", most_bytes), why)
    for condition in parse_conditions(origin.pick) if origin.pick else ():
        _limit(found, f"pick {condition.column}", condition, why)


def _limit(found: Findings, name: str, condition: Condition, why: str) -> None:
    late = condition.column.startswith("latency") and "latency" in found.unchecked
    shipped = f"onnx_{condition.column}"  # of a file in lower precision, which has a score of its own
    column = shipped if shipped in found.figures else condition.column
    if late or column not in found.figures:
        found.unchecked[name] = found.unchecked.get("latency" if late else column, why)
    else:
        found.holds(name, found.figures[column], condition)
