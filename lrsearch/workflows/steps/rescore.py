"""The loaded model's quality, and that of its ONNX form, on the score data."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lrsearch.errors import ArtifactError, DataError
from lrsearch.latency.backends import backend
from lrsearch.report.certificate import ONNX, Origin
from lrsearch.task.data import Examples, refuse_overlap
from lrsearch.task.scoring import Metric, check_labels, predict, score
from lrsearch.workflows.steps.findings import Findings

METRIC_TOLERANCE = 0.002
KL_TOLERANCE, KL_RELATIVE = 1e-3, 0.01
OUTPUT_TOLERANCE = 1e-3
MOST_COMPARED = 512


def rescore(
    found: Findings, folder: Path, model: nn.Module, base: nn.Module, scoring: Examples, origin: Origin, about: Mapping[str, Any],
    metric: Metric | None = None, why: str = "no metric was given",
) -> None:
    """Score ``model`` again, compare with what the study recorded where the data are the same, and compare ONNX's outputs.

    The study scores L + S as one weight and the model multiplies with its factors, so scores may differ by rounding:
    the metric by 0.002 or one example, the KL by 0.001 nats and 1 %.

    Args:
        metric: the study's, as the caller names it; None if the caller does not, because of ``why``.
    """
    batch, measure = origin.config.proxy.batch, metric or _no_metric
    reference, outputs = predict(base, scoring, batch), predict(model, scoring, batch)
    check_labels(reference, scoring)
    labels, claimed, baseline = scoring.labels().cpu(), about["score"], about["baseline"]
    dense = score(reference, reference, labels, measure, 0, False, "dense model").metric
    now = score(outputs, reference, labels, measure, 0, False, str(folder))
    found.figures |= {"kl": now.kl, "kl_stderr": now.kl_stderr, "examples": len(labels)}
    if metric is None:
        found.unchecked |= {"metric": why}
    else:
        found.figures |= {"metric": now.metric, "metric_drop": dense - now.metric, "dense_metric": dense}
    if origin.data and refuse_overlap(scoring)["score"] != origin.data:
        found.unchecked |= dict.fromkeys(("metric", "kl"), "these are not the score data of the study")
    else:
        one = max(METRIC_TOLERANCE, 1.01 / len(labels))
        pairs = (("metric", now.metric, claimed["metric"]), ("dense metric", dense, baseline["metric"]))
        for name, value, recorded in pairs if metric else ():
            found.within(name, value, recorded, one * max(1.0, abs(recorded)))
        found.within("kl", now.kl, claimed["kl"], KL_TOLERANCE + KL_RELATIVE * claimed["kl"])
    found.attempt(["onnx"], lambda: _compare(found, folder / ONNX, scoring, outputs))


def _no_metric(outputs: Tensor, labels: Tensor) -> float:  # noqa: ARG001  in place of one
    return 0.0


def _compare(found: Findings, path: Path, scoring: Examples, expected: Tensor) -> None:
    """ONNX Runtime's outputs on the first examples beside torch's."""
    session = onnx_session(path)
    source = session.get_inputs()[0]
    size = source.shape[0] if isinstance(source.shape[0], int) else MOST_COMPARED
    count = min(len(scoring), MOST_COMPARED)
    parts = [x.numpy() for x, _ in scoring.part(range(count)).batches(size)]
    if len(parts[-1]) < size and isinstance(source.shape[0], int):
        count -= len(parts.pop())
    if not parts:
        raise DataError(f"the ONNX model is for batches of {size}", value=f"{count} examples", place="data.score", remedy="Give more.")
    values = torch.cat([torch.from_numpy(session.run(None, {source.name: x})[0]) for x in parts]).float()
    right = expected[:count]
    difference = float((values - right).abs().max())
    same = float((values.argmax(-1) == right.argmax(-1)).float().mean())
    found.figures |= {"onnx_difference": difference, "onnx_same_top1": same, "onnx_examples": count}
    found.at_most("onnx difference of outputs", difference, OUTPUT_TOLERANCE * max(1.0, float(right.abs().max())))
    found.within("onnx same top-1", same, 1.0, max(METRIC_TOLERANCE, 1.01 / count))


def onnx_session(path: Path) -> Any:
    """ONNX Runtime's session of a file.

    Raises:
        ConfigError: ONNX Runtime is not installed.
        ArtifactError: there is no such file, or ONNX Runtime cannot read it.
    """
    backend("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ArtifactError(
            "ONNX Runtime must be able to read the model", value=f"{type(error).__name__}: {error}", place=str(path),
            remedy="Export again.",
        ) from None
