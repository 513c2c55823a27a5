"""Every output of an ONNX model is compared with torch's, whatever the model takes and returns."""

import pytest
import torch
from kinds_of_models import kind

from lrsearch.deploy.onnx_export import exported
from lrsearch.task.data import Examples
from lrsearch.task.forward import rows
from lrsearch.workflows.steps.findings import Findings
from lrsearch.workflows.steps.rescore import _compare


@pytest.mark.parametrize("name", ["keywords and a dataclass", "two inputs and nested outputs", "autocast"])
@pytest.mark.parametrize("dynamic", [True, False])
def test_every_output_is_compared(name, dynamic, tmp_path):
    model, x = kind(name, 6)
    (tmp_path / "model.onnx").write_bytes(exported(model, x if dynamic else rows(x, slice(0, 4)), dynamic))
    found = Findings()
    _compare(found, tmp_path / "model.onnx", Examples(x if isinstance(x, dict) else (x, None), "score"), model)
    assert found.figures["onnx_examples"] == (6 if dynamic else 4)
    assert all(check.passed for check in found.checks)
    with torch.no_grad():
        list(model.parameters())[-2].mul_(3)
    other = Findings()
    _compare(other, tmp_path / "model.onnx", Examples(x if isinstance(x, dict) else (x, None), "score"), model)
    assert not all(check.passed for check in other.checks)
    assert other.figures["onnx_difference"] > 0.1
