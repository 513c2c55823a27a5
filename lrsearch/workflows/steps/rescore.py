"""The loaded model's quality, and that of its ONNX form, on the score data."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lrsearch.deploy.onnx_export import PRECISION, arrays
from lrsearch.deploy.quantize import QUANTISED
from lrsearch.errors import DataError
from lrsearch.report.certificate import ONNX, Origin
from lrsearch.spec.score import renamed
from lrsearch.task.base import Task
from lrsearch.task.data import Examples
from lrsearch.task.fingerprints import refuse_overlap
from lrsearch.task.forward import forward, inference, output_tensors
from lrsearch.task.memory import BatchSize
from lrsearch.task.scoring import Reference
from lrsearch.workflows.steps.findings import Findings
from lrsearch.workflows.steps.lowering import compared
from lrsearch.workflows.steps.onnx_session import onnx_session

METRIC_TOLERANCE = 0.002  # of a metric of size 1; or one example, if that is more
KL_ROUNDING, KL_TOLERANCE = 1e-5, 1e-3  # of a small divergence and of a large one, in the task's unit
KL_SHARE, KL_RELATIVE = 0.1, 0.01  # of the divergence: instead of these where it lies between, and besides
OUTPUT_TOLERANCE, ROUNDINGS = 1e-3, 4  # share of the largest output; or as many roundings of the coarsest type, if that is more
MOST_COMPARED = 512  # examples


def rescore(
    found: Findings, folder: Path, model: nn.Module, base: nn.Module, scoring: Examples, origin: Origin, about: Mapping[str, Any],
    task: Task | None = None, why: str = "no metric was given",
) -> None:
    """Score ``model`` again, compare with what the study recorded where the data are the same, and compare ONNX's outputs.

    The study scores L + S as one weight and the model multiplies with its factors, so scores may differ by rounding:
    the metric by 0.002 or one example, the divergence as :func:`divergence_tolerance` has it.

    Args:
        task: the study's; None if the caller does not name it, because of ``why``.
    """
    claimed, baseline = renamed(about.get("float32") or about["score"]), about["baseline"]
    if task is None:
        found.unchecked |= dict.fromkeys(("metric", "divergence", "onnx"), why)
        return
    reference = Reference(task, base, scoring, BatchSize(origin.config.proxy.batch))
    dense, compared = reference.itself(base, "dense model").metric, reference.compare(model, str(folder))
    now, n = compared.score(0, False, str(folder)), len(compared.divergences)
    found.figures |= {"divergence": now.divergence, "divergence_stderr": now.divergence_stderr, "examples": n}
    if now.metric is not None and dense is not None:
        found.figures |= {"metric": now.metric, "metric_drop": dense - now.metric, "dense_metric": dense}
    elif claimed["metric"] is not None:
        found.unchecked |= {"metric": why}
    if origin.data and refuse_overlap(scoring)["score"] != origin.data:
        found.unchecked |= dict.fromkeys(("metric", "divergence"), "these are not the score data of the study")
    else:
        one = max(METRIC_TOLERANCE, 1.01 / n)
        pairs = (("metric", now.metric, claimed["metric"]), ("dense metric", dense, baseline["metric"]))
        for name, value, recorded in pairs:
            if value is not None and recorded is not None:
                found.within(name, value, recorded, one * max(1.0, abs(recorded)))
        found.within("divergence", now.divergence, claimed["divergence"], divergence_tolerance(claimed["divergence"], model))
    if origin.precision == "float32":
        found.attempt(["onnx"], lambda: _compare(found, folder / ONNX, scoring, model))
    else:
        found.attempt(["onnx"], lambda: _score(found, folder / ONNX, reference, model, origin, dense))


def divergence_tolerance(claimed: float, model: nn.Module) -> float:
    """What a divergence may be off by: a tenth of a small one and 1 % of a large one, so that none passes for one of another size.

    Where ``model`` has parameters in less than float32, rounding alone moves it by ``KL_TOLERANCE``.
    """
    eps = max((torch.finfo(p.dtype).eps for p in model.parameters() if p.is_floating_point()), default=0.0)
    least = max(KL_ROUNDING, ROUNDINGS * eps)
    return min(KL_TOLERANCE, max(least, KL_SHARE * claimed)) + KL_RELATIVE * claimed


def _score(found: Findings, path: Path, reference: Reference, model: nn.Module, origin: Origin, dense: float | None) -> None:
    """What the file itself scores: in lower precision it is another model than torch's; the same as when it was exported."""
    now = compared(reference, path, model).score(0, False, str(path))
    n = len(reference.examples)
    found.figures |= {"onnx_divergence": now.divergence, "onnx_divergence_stderr": now.divergence_stderr}
    if now.metric is not None and dense is not None:
        found.figures |= {"onnx_metric": now.metric, "onnx_metric_drop": dense - now.metric}
    if note := onnx_session(path).get_modelmeta().custom_metadata_map.get(QUANTISED):
        found.conditions |= {"int8": note}
    claimed = origin.scored
    if "divergence" in claimed:
        found.within("onnx divergence", now.divergence, claimed["divergence"], divergence_tolerance(claimed["divergence"], model))
    if now.metric is not None and "metric" in claimed:
        tolerance = max(METRIC_TOLERANCE, 1.01 / n) * max(1.0, abs(claimed["metric"]))
        found.within("onnx metric", now.metric, claimed["metric"], tolerance)


def _compare(found: Findings, path: Path, scoring: Examples, model: nn.Module) -> None:
    """ONNX Runtime's outputs on the first examples beside torch's: each output's values, and of logits (n, classes) the largest."""
    session = onnx_session(path)
    fixed = [s.shape[0] for s in session.get_inputs() if s.shape and isinstance(s.shape[0], int)]
    size = fixed[0] if fixed else MOST_COMPARED
    count = min(len(scoring), MOST_COMPARED)
    count -= count % size if fixed else 0
    if not count:
        rule = f"the ONNX model is for batches of {size}"
        raise DataError(rule, value=f"{len(scoring)} examples", place="data.score", remedy="Give more.")
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {}
    with inference(model):
        for x in (b.inputs for b in scoring.part(range(count)).batches(size)):
            given = dict(zip((s.name for s in session.get_inputs()), arrays(x).values(), strict=True))
            for (name, right), values in zip(output_tensors(forward(model, x)).items(), session.run(None, given), strict=True):
                parts.setdefault(name, []).append((torch.from_numpy(values), right.cpu()))
    outputs = {name: tuple(map(torch.cat, zip(*pairs, strict=True))) for name, pairs in parts.items()}
    same = [float((y.argmax(-1) == r.argmax(-1)).float().mean()) for y, r in outputs.values() if r.dim() == 2 and r.is_floating_point()]
    found.figures |= {"onnx_examples": count, "onnx_difference": max(map(_difference, *zip(*outputs.values(), strict=True)))}
    tolerance = _tolerance(session)
    for name, (values, right) in outputs.items():
        which = "onnx difference of outputs" if len(outputs) == 1 else f"onnx difference of {name}"
        found.at_most(which, _difference(values, right), tolerance * max(1.0, float(right.double().abs().max())))
    if same:
        found.figures |= {"onnx_same_top1": min(same)}
        found.within("onnx same top-1", min(same), 1.0, max(METRIC_TOLERANCE, tolerance, 1.01 / count))


def _difference(values: Tensor, right: Tensor) -> float:
    return float((values.double() - right.double()).abs().max())


def _tolerance(session: Any) -> float:
    """Largest relative difference of outputs: a thousandth, or some roundings of the coarsest type that torch computes in."""
    precision = session.get_modelmeta().custom_metadata_map.get(PRECISION, "float32")
    return max(OUTPUT_TOLERANCE, ROUNDINGS * torch.finfo(getattr(torch, precision)).eps)

