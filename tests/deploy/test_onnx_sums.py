"""What is left of a skipped block is one sum, whatever the size of the batch; in int8 with a constant that is as large as an image."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from lrsearch.compress.apply import compress
from lrsearch.compress.inventory import inventory
from lrsearch.deploy.deployed import deployed
from lrsearch.deploy.onnx_export import exported
from lrsearch.deploy.onnx_sums import prune, without_zeros
from lrsearch.deploy.quantize import quantised_to_time
from lrsearch.latency.survey import Survey
from lrsearch.spec.plan import LayerPlan, Plan

SKIPPED = Plan({"second": LayerPlan(density=0.0)})
X = torch.randn(3, 3, 8, 6)


class Block(nn.Module):
    """(n, 3, 8, 6) → (n, 5): a stem, a residual block, a head."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.second, self.head = nn.Conv2d(16, 8, 3, padding=1, bias=bias), nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x).relu()
        return self.head((x + self.second(self.first(x).relu())).relu().mean((2, 3)))


def skipped(bias: bool) -> tuple[nn.Module, nn.Module]:
    """The model, and what ships of it once its block is skipped."""
    torch.manual_seed(0)
    model = Block(bias).eval()
    return model, deployed(compress(model, inventory(model, X).layers, SKIPPED), X)


def run(data: bytes, x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(onnxruntime.InferenceSession(data).run(None, {"input": x.numpy()})[0])


def kinds(data: bytes) -> list[str]:
    return [node.op_type for node in onnx.load_from_string(data).graph.node]


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@torch.no_grad()
def test_its_bias_is_added_without_zeros(bias, dynamic):
    _, small = skipped(bias)
    data = exported(small, X, dynamic)
    assert (kinds(data).count("Add"), kinds(data).count("Conv")) == (int(bias), 1)
    assert "ConstantOfShape" not in kinds(data)
    torch.testing.assert_close(run(data, X), small(X), rtol=1e-4, atol=1e-5)
    if dynamic:
        torch.testing.assert_close(run(data, X[:1]), small(X[:1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
def test_what_is_timed_has_the_operators_of_what_ships(bias):
    model, small = skipped(bias)
    layers = inventory(model, X).layers
    survey = Survey.of(model, layers, {layer.name: [LayerPlan(), SKIPPED[layer.name]] for layer in layers}, X, 1)
    timed, ships = survey.onnx(SKIPPED, []), exported(small, X[:1])
    assert sorted(kinds(timed)) == sorted(kinds(ships))
    assert sorted(kinds(quantised_to_time(timed))) == sorted(kinds(quantised_to_time(ships)))


def test_in_int8_the_constant_is_as_large_as_an_image():
    _, small = skipped(bias=True)
    graph = onnx.load_from_string(quantised_to_time(exported(small, X[:1]))).graph
    constants = {t.name: list(t.dims) for t in graph.initializer}
    made = {output: node for node in graph.node for output in node.output}
    (added,) = [node for node in graph.node if node.op_type == "Add"]
    assert [1, 8, 8, 6] in [constants.get(made[name].input[0]) for name in added.input]


def test_a_bias_of_tokens_stays_as_small_as_it_is():
    """(n, 7, 16) tokens: what is added along their last axis is as fast, and would take seven times the bytes."""
    graph = onnx.load_from_string(quantised_to_time(exported(nn.Linear(16, 12).eval(), torch.randn(2, 7, 16)))).graph
    assert max(len(t.dims) for t in graph.initializer) == 2


def test_zeros_that_give_a_sum_its_shape_stay():
    """(2, 3) zeros + (3,) is what nothing else makes, as an output and where the other operand is smaller too."""
    shape = numpy_helper.from_array(np.array([2, 3]), "shape")
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"]), helper.make_node("Add", ["zeros", "row"], ["rows"]),
        helper.make_node("Add", ["rows", "row"], ["twice"]), helper.make_node("Neg", ["rows"], ["negative"]),
        helper.make_node("Relu", ["row"], ["unused"]),
    ]
    row = helper.make_tensor_value_info("row", TensorProto.FLOAT, [3])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in ("twice", "negative")]
    graph = helper.make_graph(nodes, "sums", [row], ends, [shape])
    model = without_zeros(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))
    assert [node.op_type for node in model.graph.node] == ["ConstantOfShape", "Add", "Add", "Neg"]
    given = np.arange(3, dtype=np.float32)
    twice, negative = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"row": given})
    assert (twice == 2 * given).all()
    assert negative.shape == (2, 3)


def test_what_inner_graphs_read_is_not_pruned():
    inner = helper.make_graph([helper.make_node("Neg", ["kept"], ["y"])], "inner", [], [helper.make_tensor_value_info("y", 1, [1])])
    nodes = [helper.make_node("Relu", ["x"], ["kept"]), helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner)]
    graph = helper.make_graph(nodes, "outer", [], [helper.make_tensor_value_info("z", 1, [1])])
    prune(graph)
    assert len(graph.node) == 2
