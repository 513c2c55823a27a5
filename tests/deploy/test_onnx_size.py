"""A model.onnx takes as many bytes as its values need, and runs as if they were written out."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from lrsearch.compress.apply import compress
from lrsearch.compress.inventory import inventory
from lrsearch.compress.rounding import rounded
from lrsearch.deploy.deployed import deployed_of
from lrsearch.deploy.onnx_graph import onnx_model
from lrsearch.deploy.onnx_size import compact
from lrsearch.spec.plan import LayerPlan, Plan

VALUES = 64 * 32 * 9
OPERATORS = 2000  # bytes at most of those that make one weight whole


def run(model: bytes, x: torch.Tensor) -> np.ndarray:
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"input": x.numpy()})[0]


def left_at_run_time(model: bytes, tmp_path) -> list[str]:
    """The operators that ONNX Runtime executes, other than those of layouts."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return [n.op_type for n in onnx.load(tmp_path / "optimised.onnx").graph.node if not n.op_type.startswith("Reorder")]


def sparse(weight):
    return weight * (torch.arange(weight.numel()).view_as(weight) % 4 == 0)


def int8(weight):
    """As stored, with a BatchNorm's gain folded into each row."""
    return rounded(weight, "int8", "") * torch.linspace(0.3, 2, len(weight)).view(-1, 1, 1, 1)


@pytest.mark.parametrize(
    ("change", "bytes_"),
    [
        (lambda w: w, 4 * VALUES), (sparse, VALUES * (4 / 4 + 1 / 8)), (lambda w: w.bfloat16().float(), 2 * VALUES),
        (lambda w: w.half().float(), 2 * VALUES), (int8, VALUES + 4 * 64), (lambda w: int8(sparse(w)), VALUES * (1 / 4 + 1 / 8) + 4 * 64),
        (lambda w: 0 * w, VALUES / 8 + 4),
    ],
    ids=["any", "a quarter of them", "bfloat16", "float16", "int8", "a quarter in int8", "none"],
)  # fmt: skip
@torch.no_grad()
def test_weights_take_the_bytes_of_their_values_and_are_folded_at_load(change, bytes_, tmp_path):
    layer, x = nn.Conv2d(32, 64, 3, padding=1).eval(), torch.randn(1, 32, 6, 6)
    layer.weight.copy_(change(layer.weight))
    whole = onnx_model(layer, x)
    small = compact(whole)
    assert len(small) <= min(bytes_ + OPERATORS, len(whole) + 50)  # some numbers take a byte more in the order they are written
    np.testing.assert_allclose(run(small, x), run(whole, x), rtol=1e-4, atol=1e-5)
    assert left_at_run_time(small, tmp_path) == ["Conv"]


@torch.no_grad()
def test_halves_are_asked_for_and_values_that_do_not_fit_stay():
    layer, x = nn.Linear(64, 64).eval(), torch.randn(3, 64)
    whole = onnx_model(layer, x)
    small = compact(whole, halves=True)
    assert len(small) < 0.6 * len(whole)
    np.testing.assert_allclose(run(small, x), run(whole, x), atol=1e-3)
    assert not np.array_equal(run(small, x), run(whole, x))
    layer.weight[0, 0] = 1e6  # float16 ends at 65,504
    whole = onnx_model(layer, x)
    np.testing.assert_allclose(run(compact(whole, halves=True), x), run(whole, x), rtol=1e-6, atol=1e-3)  # but for the bias


@pytest.mark.parametrize(
    ("layer", "shape", "choice"),
    [
        (nn.Conv2d(32, 48, 3, padding=1), (1, 32, 6, 6), LayerPlan("svd", (4,), 0.1)),
        (nn.Conv2d(32, 48, 3, padding=1), (1, 32, 6, 6), LayerPlan("tucker2", (8, 8), 0.1)),
        (nn.Conv2d(32, 48, 3, padding=1), (1, 32, 6, 6), LayerPlan("cp", (8,), 0.1)),
        (nn.Conv2d(32, 48, 3, padding=1, groups=2), (1, 32, 6, 6), LayerPlan("spatial-svd", (4,), 0.1)),
        (nn.Linear(96, 64), (2, 96), LayerPlan("svd", (4,), 0.1)), (nn.Linear(96, 64), (2, 5, 96), LayerPlan("svd", (4,), 0.1)),
    ],
    ids=["svd", "tucker2", "cp", "grouped", "vectors", "tokens"],
)
def test_a_sum_that_runs_as_one_dense_layer_is_stored_in_its_parts(layer, shape, choice, white_fits, tmp_path):
    base, x = nn.Sequential(layer).eval(), torch.randn(shape)
    specs, plan = inventory(base, x).layers, Plan({"0": choice})
    small, parts = deployed_of(compress(base, specs, plan, white_fits(base, specs, plan)), x, ())
    whole = onnx_model(small, x)
    stored = compact(whole, sums=parts)
    assert len(stored) < 0.45 * len(whole) < 0.9 * len(compact(whole))  # of parts 10 % + 1 bit are S's, some per cent L's
    np.testing.assert_allclose(run(stored, x), run(whole, x), rtol=1e-3, atol=1e-4)
    assert set(left_at_run_time(stored, tmp_path)) <= {"Conv", "Gemm", "MatMul", "Add", "Reshape"}  # that of tokens into rows


def test_what_the_exporter_notes_does_not_ship():
    from lrsearch.deploy.onnx_export import exported

    x = torch.randn(2, 8)
    whole = exported(nn.Linear(8, 4).eval(), x)
    assert b"onnx_export.py" in whole  # a path of the machine that it was made on
    assert b"onnx_export.py" not in compact(whole)
    assert np.array_equal(run(compact(whole), x), run(whole, x))
