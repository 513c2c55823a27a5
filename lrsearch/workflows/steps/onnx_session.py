"""ONNX Runtime's session of an exported file."""

from pathlib import Path
from typing import Any

import torch

from lrsearch.errors import ArtifactError
from lrsearch.latency.backends import backend


def onnx_session(model: Path | bytes) -> Any:
    """ONNX Runtime's session of a file, or of its bytes.

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
        return onnxruntime.InferenceSession(model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ArtifactError(
            "ONNX Runtime must be able to read the model", value=f"{type(error).__name__}: {error}",
            place="model.onnx" if isinstance(model, bytes) else str(model), remedy="Export again.",
        ) from None
