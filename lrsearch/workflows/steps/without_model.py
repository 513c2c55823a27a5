"""What can be checked of a folder without the model, so that no code runs but lrsearch's own: size, ONNX, latency."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrsearch.compress import artifact
from lrsearch.report.certificate import ONNX, Origin
from lrsearch.task.forward import Inputs, tensors
from lrsearch.workflows.steps.findings import Findings
from lrsearch.workflows.steps.onnx_session import onnx_session
from lrsearch.workflows.steps.retime import retime_file

NEEDING = ("params", "macs", "nonzero_macs", "dense model", "metric", "divergence", "onnx", "peak_bytes")


def check_without_model(
    found: Findings, folder: Path, sample: Inputs | None, origin: Origin, about: Mapping[str, Any], why: str,
) -> None:
    """Check the weights against their seal, read the ONNX model and time it; the rest is not checked.

    Args:
        sample: two inputs, for the runtime that times; None if their shape was not noted.
        why: there is no model.

    Raises:
        ArtifactError: the weights are not as they were saved.
    """
    artifact.read_weights(folder / artifact.WEIGHTS, about["storage"])
    found.unchecked |= dict.fromkeys(NEEDING, why)
    size = (folder / artifact.WEIGHTS).stat().st_size
    found.equal("weight_bytes", size, about["cost"]["weight_bytes"])
    found.figures |= {"weight_bytes": size, "weight_bytes_ratio": size / about["dense"]["weight_bytes"]}
    if (folder / ONNX).exists():
        found.figures |= {"onnx_bytes": (folder / ONNX).stat().st_size}
        found.attempt(["onnx"], lambda: _count_inputs(found, folder / ONNX, sample))
    retime_file(found, folder, sample, origin, why)


def _count_inputs(found: Findings, path: Path, sample: Inputs | None) -> None:
    """The ONNX model can be loaded, and has an input for each tensor that the model takes, where that is known."""
    inputs = onnx_session(path).get_inputs()
    if sample is not None:
        found.equal("onnx inputs", len(inputs), len(tensors(sample)))
