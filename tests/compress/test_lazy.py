import onnxruntime
import pytest
import torch
from torch import nn

from lrsearch.compress.apply import write_effective
from lrsearch.compress.inventory import layer_spec
from lrsearch.compress.modules import CompressedLayer, compressed_layer
from lrsearch.spec.plan import LayerPlan


class Reader(nn.Module):
    """Asks its layer for all that a parent may want to know, and uses the answers."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        weight = self.layer.weight
        ones = torch.ones(weight.shape[0], device=weight.device, dtype=weight.dtype)
        assert weight.numel() == weight.size(0) * weight.size()[1]
        return self.layer(x) + ones * weight.ndim * weight.dim() * weight.requires_grad


class User(nn.Module):
    """Calls its layer, and multiplies with its weight in several ways."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        weight, bias = self.layer.weight, self.layer.bias
        return self.layer(x) + nn.functional.linear(x, weight=weight, bias=bias) + x @ weight.T + (2 * weight[1:] @ x.mT).sum()


PARENT_PLANS = [LayerPlan("svd", (2,), 0.0), LayerPlan("svd", (2,), 0.5), LayerPlan(density=0.5), LayerPlan(density=0.5, pattern="column")]


@pytest.fixture(params=PARENT_PLANS, ids=str)
def held(request, decomposed):
    """A compressed layer, and the dense one of its effective weight."""
    dense = nn.Linear(8, 6)
    spec = layer_spec(dense, "0")
    fit = decomposed(spec, request.param)
    small = compressed_layer(dense, spec, request.param, fit)
    write_effective(model := nn.Sequential(dense), {"0": fit})
    return small, model[0]


def test_reading_what_a_weight_is_like_costs_nothing(held, monkeypatch):
    small, dense = held
    x = torch.randn(3, 8)
    expected = Reader(dense)(x)
    monkeypatch.setattr(CompressedLayer, "whole_weight", lambda layer: pytest.fail("the weight is composed"))
    torch.testing.assert_close(Reader(small)(x), expected)
    assert (small.weight.dtype, small.weight.device, small.weight.shape) == (dense.weight.dtype, dense.weight.device, dense.weight.shape)


def test_a_weight_used_as_a_tensor_is_l_plus_s(held):
    small, dense = held
    x = torch.randn(3, 8)
    torch.testing.assert_close(User(small)(x), User(dense)(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(-small.weight / 2 + abs(small.weight), dense.weight.abs() - dense.weight / 2)
    torch.testing.assert_close(small.weight.norm(), dense.weight.norm())
    torch.testing.assert_close(torch.stack([small.weight, small.weight])[1], dense.weight)
    assert len(list(small.weight)) == len(small.weight) == 6


def test_gradients_flow_through_a_weight_used_as_a_tensor(held):
    nn.functional.linear(torch.randn(3, 8), held[0].weight).square().sum().backward()
    stored = {name: p.grad for name, p in held[0].named_parameters() if name != "bias"}
    assert all(grad is not None and grad.abs().sum() > 0 for grad in stored.values())


@pytest.mark.parametrize("parent", [Reader, User])
@pytest.mark.parametrize("strict", [False, True])
def test_export_of_parents_that_read_or_use_a_weight(held, parent, strict):
    model, x = parent(held[0]).eval(), torch.randn(3, 8)
    torch.testing.assert_close(torch.export.export(model, (x,), strict=strict).module()(x), model(x))


def test_an_exported_program_does_not_compose_what_is_only_read(held):
    program = torch.export.export(Reader(held[0]).eval(), (torch.randn(3, 8),))
    assert all(node.users for node in program.graph.nodes if node.op == "call_function")


@pytest.mark.parametrize("parent", [Reader, User])
def test_onnx_of_parents_that_read_or_use_a_weight(decomposed, parent, tmp_path):
    dense, plan, x = nn.Linear(8, 6), LayerPlan("svd", (2,), 0.5), torch.randn(3, 8)
    spec = layer_spec(dense, "0")
    model = parent(compressed_layer(dense, spec, plan, decomposed(spec, plan))).eval()
    torch.onnx.export(model, (x,), tmp_path / "model.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    outputs = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(outputs[0]), model(x), rtol=1e-4, atol=1e-4)
