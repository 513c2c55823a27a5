"""A model that ships in lower precision is scored, weighed and checked as the file that it is."""

from dataclasses import replace

import pytest
import torch
from outputs import TASK, reference_of
from torch import nn

import lrsearch
from lrsearch.compress import artifact
from lrsearch.compress.apply import compress
from lrsearch.compress.storage import Storage
from lrsearch.deploy.onnx_export import exported
from lrsearch.deploy.onnx_run import OnnxModel
from lrsearch.errors import ConfigError
from lrsearch.latency.runner import Timing
from lrsearch.measure.count import cost_model
from lrsearch.report.certificate import Certificate, Origin
from lrsearch.spec.config import StudyConfig
from lrsearch.spec.plan import LayerPlan, Plan
from lrsearch.task.data import Examples
from lrsearch.workflows.steps import export_folder as export
from lrsearch.workflows.steps import retime
from lrsearch.workflows.steps.lowering import Lowering
from lrsearch.workflows.steps.onnx_session import onnx_session
from lrsearch.workflows.steps.verify_folder import digest

PLAN = Plan({"stem": LayerPlan(density=0.5), "pointwise": LayerPlan("svd", (4,), 0.0)})


@pytest.fixture
def scoring(tiny_data):
    return tiny_data[0][:60], tiny_data[1][:60]


@pytest.fixture
def shipped(tiny_model, layers, white_fits, scoring, tiny_data, tmp_path, monkeypatch):
    """Exports in a precision; 6 ms on the clock, the dense model 8 ms, in int8 4 ms."""
    monkeypatch.setattr(retime, "interleaved", lambda models, threads, rounds: [Timing(ms, ms, ms, ms, 1) for ms in (6.0, 8.0, 4.0)])
    costs, examples = cost_model(tiny_model, layers, tiny_data[0][:2]), Examples(scoring, "score")
    model = compress(tiny_model, layers, PLAN, white_fits(tiny_model, layers, PLAN))
    found, dense = (reference_of(tiny_model, examples, 20).compare(m).score(0, False, "") for m in (model, tiny_model))
    about = {
        "lrsearch": "0.1.0", "model": None, "split": [], "dense": costs.dense.to_dict(), "baseline": dense.to_dict(),
        "cost": costs(PLAN).to_dict(), "score": {**found.to_dict(), "divergence": 9.0}, "float32": found.to_dict(),
    }
    artifact.save(model, PLAN, tmp_path / "saved", about, Storage(layers))

    def ship(precision, **settings):
        calibration = Examples((tiny_data[0][60:], tiny_data[1][60:]), "calibration")
        origin = Origin(
            StudyConfig(latency={"batch": 4}, **settings), dense=digest(tiny_model), precision=precision, pick="kl<=1",
            inputs={"shape": [3, 12, 12], "dtype": "float32"},
        )
        lowering = Lowering(precision, tiny_model, calibration, TASK)
        unmade = export.write_folder(tmp_path / "saved", tmp_path / precision, tiny_model, scoring[0][:2], origin, lowering, examples)
        assert not unmade
        return tmp_path / precision

    return ship


def test_int8_is_scored_by_the_file_and_timed_beside_both_dense_models(shipped, tiny_model, scoring):
    folder = shipped("int8")
    found = lrsearch.verify(folder, model=tiny_model, score=scoring)
    assert found.passed, found.failures
    assert {"onnx divergence", "onnx metric", "divergence", "pick divergence"} <= {check.name for check in found.checks}
    picked = next(c for c in found.checks if c.name == "pick divergence")
    assert picked.found == found.figures["onnx_divergence"] != found.figures["divergence"]
    assert found.figures["latency_ms_ratio"] == found.figures["latency_ms_over_dense"] == 0.75
    assert found.figures["latency_ms_over_dense_int8"] == 1.5
    assert '"weight_bits"' in found.conditions["int8"]
    made = Certificate.load(folder)
    claimed = {**made.origin.scored, "divergence": made.origin.scored["divergence"] + 0.1}
    replace(made, origin=replace(made.origin, scored=claimed)).save(folder)
    assert [c.name for c in lrsearch.verify(folder, model=tiny_model, score=scoring).failures] == ["onnx divergence"]


@pytest.mark.slow
def test_ratios_of_an_int8_study_are_of_the_dense_model_in_int8(shipped, tiny_model, scoring):
    found = lrsearch.verify(shipped("int8", deploy={"precision": "int8"}, budget={"latency_ratio": 1.0}), model=tiny_model, score=scoring)
    assert found.figures["latency_ms_ratio"] == 1.5
    assert [c.name for c in found.failures] == ["budget latency_ratio"]


@pytest.mark.slow
def test_float16_is_smaller_and_a_limit_of_bytes_is_checked(shipped, tiny_model, scoring):
    folders = [shipped(precision, deploy={"onnx_bytes": 7000}) for precision in ("float32", "float16")]
    whole, half = (lrsearch.verify(folder, model=tiny_model, score=scoring) for folder in folders)
    assert half.figures["onnx_bytes"] < 0.75 * whole.figures["onnx_bytes"]
    assert [c.name for c in whole.failures] == ["budget onnx_bytes"]
    assert half.passed, half.failures
    assert "onnx_divergence" in half.figures
    assert "onnx_difference" in whole.figures


def test_int8_needs_calibration_data(tiny_model):
    with pytest.raises(ConfigError, match=r"deploy\.precision: int8 needs calibration data; got 0 examples"):
        Lowering("int8", tiny_model, None, TASK)(b"", tiny_model, (), None)


class Named(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layer, self.kind = nn.Linear(4, 3), kind

    def forward(self, x):
        y = self.layer(x)
        return {"tensor": y, "tuple": (y, -y), "dict": {"logits": y, "state": x + 1}}[self.kind]


@pytest.mark.parametrize("kind", ["tensor", *(pytest.param(k, marks=pytest.mark.slow) for k in ("tuple", "dict"))])
def test_an_onnx_model_returns_what_the_module_returns_in_any_batch(kind):
    module, x = Named(kind).eval(), torch.randn(5, 4)
    file = OnnxModel(onnx_session(exported(module, x[:2])), module)
    with torch.no_grad():
        torch.testing.assert_close(file(x), module(x))
