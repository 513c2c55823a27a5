"""Models in int8, by ONNX Runtime's quantiser, and what the simulation of it computes."""

import logging

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from lrsearch.compress.apply import write_effective
from lrsearch.compress.inventory import inventory
from lrsearch.deploy import quantize
from lrsearch.deploy.int8 import Int8
from lrsearch.deploy.onnx_graph import onnx_model
from lrsearch.deploy.quantize import METHODS, quantised, quantised_to_time, weight_bits
from lrsearch.spec.plan import LayerPlan, Plan


def run(model: bytes, x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"input": x.numpy()})[0])


@pytest.fixture
def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3, padding=1)).eval().requires_grad_(False)


def operators_in(model: bytes) -> list[str]:
    return [node.op_type for node in onnx.load_from_string(model).graph.node]


def test_the_method_that_diverges_least_is_taken(network, capsys):
    x = torch.randn(4, 3, 12, 12)
    given = [{"input": x.numpy()}, {"input": (x / 2).numpy()}]
    made = quantised(onnx_model(network, x), given, lambda model: float((run(model, x) - network(x)).square().mean()))
    assert set(made.tried) == set(METHODS)
    assert made.tried[made.method] == min(made.tried.values()) == float((run(made.model, x) - network(x)).square().mean())
    assert (run(made.model, x) - network(x)).abs().max() < 0.05 * network(x).abs().max()
    weights = [t for t in onnx.load_from_string(made.model).graph.initializer if len(t.dims) == 4]
    assert {t.data_type for t in weights} == {onnx.TensorProto.INT8}
    assert max(int(np.abs(onnx.numpy_helper.to_array(t)).max()) for t in weights) <= 2 ** (made.weight_bits - 1)
    assert capsys.readouterr().out == ""  # the quantiser prints


def test_what_is_only_timed_has_the_operators_of_what_ships(network):
    x = torch.randn(1, 3, 12, 12)
    whole = onnx_model(network, x)
    made = quantised(whole, [{"input": x.numpy()}], lambda _: 0.0)
    assert operators_in(quantised_to_time(whole)) == operators_in(made.model)
    assert "QuantizeLinear" in operators_in(made.model)


def test_between_layer_normalisations_only_products_are_quantised_and_nothing_is_logged(caplog):
    torch.manual_seed(0)
    norm, x = nn.LayerNorm(16), torch.randn(3, 16)
    network = nn.Sequential(nn.Linear(16, 16), norm, nn.GELU(), nn.Linear(16, 4)).eval().requires_grad_(False)
    whole = onnx_model(network, x)
    made = quantised(whole, [{"input": x.numpy()}], lambda model: float((run(model, x) - network(x)).square().mean()))
    graph = onnx.load_from_string(made.model).graph
    rounded = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    weights = {node.op_type: node.input[1] in rounded for node in graph.node if node.op_type in ("LayerNormalization", "Gemm", "MatMul")}
    assert weights.pop("LayerNormalization") is False
    assert all(weights.values())
    assert weights
    assert operators_in(quantised_to_time(whole)) == operators_in(made.model)
    assert [r for r in caplog.records if r.name == "root"] == []


def test_the_quantiser_does_not_set_up_logging(monkeypatch):
    """Its ``logging.info`` would: from then on all that is logged is printed, a line of each step of a search included."""
    monkeypatch.setattr(logging.root, "handlers", [])
    with quantize._silent():
        logging.info("a scale was adjusted")
    assert logging.root.handlers == []


def test_products_of_two_activations_stay_in_float():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(16, 48)

        def forward(self, x):
            q, k, v = self.qkv(torch.layer_norm(x, x.shape[-1:])).chunk(3, -1)
            return torch.softmax(q @ k.transpose(-1, -2), -1) @ v

    torch.manual_seed(0)
    network, x = Attention().eval().requires_grad_(False), torch.randn(2, 5, 16)
    whole = onnx_model(network, x)
    made = quantised(whole, [{"input": x.numpy()}], lambda model: float((run(model, x) - network(x)).square().mean()))
    for model in (made.model, quantised_to_time(whole)):
        graph = onnx.load_from_string(model).graph
        rounded = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
        products = [tuple(name in rounded for name in node.input[:2]) for node in graph.node if node.op_type in ("Gemm", "MatMul")]
        assert sorted(products) == [(False, False), (False, False), (True, True)]


def test_what_is_added_to_a_product_with_a_weight_may_depend_on_the_input():
    product = onnx.helper.make_node("Gemm", ["h", "weight", "x"], ["y"], "residual")
    attention = onnx.helper.make_node("MatMul", ["y", "h"], ["z"], "attention")
    hidden = onnx.helper.make_node("Relu", ["x"], ["h"], "hidden")
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4, 4]) for name in "xz"]
    weight = onnx.numpy_helper.from_array(np.eye(4, dtype=np.float32), "weight")
    graph = onnx.helper.make_graph([hidden, product, attention], "graph", values[:1], values[1:], [weight])
    assert quantize.products_of_activations(graph) == ["attention"]


@pytest.mark.parametrize(
    ("machine", "flags", "bits"),
    [
        ("x86_64", "fpu avx2 avx512f", 7), ("x86_64", "fpu avx2 avx512_vnni", 8), ("x86_64", "avx_vnni", 8), ("aarch64", "", 8),
        ("AMD64", "", 7),
    ],
)  # fmt: skip
def test_weights_have_seven_bits_where_products_add_up_in_sixteen(machine, flags, bits, tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags\t\t: {flags}\n")
    monkeypatch.setattr(quantize, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(quantize.platform, "machine", lambda: machine)
    assert weight_bits() == bits


def test_weights_and_inputs_are_rounded_while_a_candidate_is_scored():
    layer = nn.Sequential(nn.Linear(2, 2, bias=False)).eval().requires_grad_(False)
    layer[0].weight.copy_(torch.tensor([[127.0, 0.4], [1.27, 0.006]]))
    rounding = Int8(layer, [torch.tensor([[-1.0, 4.1]])], bits=8)
    assert rounding.ranges == {"0": (-1.0, pytest.approx(4.1))}  # of 255 steps of 0.02
    x = torch.tensor([[1.0, 0.0], [0.0, 1.009], [9.0, 0.0]])
    with rounding.applied({}):
        found = layer(x)
    torch.testing.assert_close(found, torch.tensor([[127.0, 1.27], [0.0, 0.01], [4.1 * 127, 4.1 * 1.27]]))  # ranges clip
    torch.testing.assert_close(layer(x)[1], torch.tensor([0.4036, 0.006054]))  # as it was


def test_factors_of_a_chain_are_rounded_each(white_fits):
    base, x = nn.Sequential(nn.Linear(8, 8)).eval().requires_grad_(False), torch.randn(64, 8)
    specs, plan = inventory(base, x[:2]).layers, Plan({"0": LayerPlan("svd", (2,), 0.0)})
    fits = white_fits(base, specs, plan)
    write_effective(base, fits)
    before, rounding = base[0].weight.clone(), Int8(base, [x], bits=8)
    with rounding.applied(fits):
        first, second = map(rounding.in_rows, fits["0"].factors)
        torch.testing.assert_close(base[0].weight, second @ first)
        assert not torch.equal(base[0].weight, before)
    assert torch.equal(base[0].weight, before)


def test_the_simulation_diverges_as_much_as_the_file(network):
    x = torch.randn(64, 3, 12, 12)
    file = quantised(onnx_model(network, x), [{"input": x.numpy()}], lambda _: 0.0)
    with Int8(network, [x]).applied({}):
        simulated = network(x)
    off, off_simulated = ((y - network(x)).square().mean() for y in (run(file.model, x), simulated))
    assert 0.3 < off_simulated / off < 2  # the file rounds its outputs too
