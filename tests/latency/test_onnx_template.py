"""A layer exchanged in the exported graph is the layer that a whole export would have."""

import copy

import onnxruntime
import pytest
import torch
from torch import nn

from lrsearch.compress.inventory import inventory
from lrsearch.deploy.deployed import deployed
from lrsearch.deploy.onnx_template import Template
from lrsearch.latency import survey as surveys
from lrsearch.latency.micro_models import alone
from lrsearch.spec.plan import LayerPlan, Plan

PLANS = {
    "stem": LayerPlan("svd", (4,), 0.0), "pointwise": LayerPlan(density=0.5, pattern="row"),
    "head": LayerPlan("svd", (2,), 0.25, "column"),
}  # fmt: skip


@pytest.fixture
def dense(tiny_model, tiny_data) -> nn.Module:
    return deployed(tiny_model, tiny_data[0][:1])


@torch.no_grad()
def test_outputs_are_those_of_the_model_with_the_layers_exchanged(dense, tiny_data, layers):
    x, seen = tiny_data[0][:1], {}
    hooks = [dense.get_submodule(n).register_forward_pre_hook(lambda _, args, n=n: seen.update({n: args[0]})) for n in PLANS]
    dense(x)
    for hook in hooks:
        hook.remove()
    template, specs = Template(dense, x), {spec.name: spec for spec in layers}
    before = template.exchanged({})
    exchange = {n: (alone(dense.get_submodule(n), specs[n], plan), seen[n]) for n, plan in PLANS.items()}
    data = template.exchanged(exchange)
    expected = copy.deepcopy(dense)
    for name, (module, _) in exchange.items():
        expected.set_submodule(name, module)
    for model, written in ((expected, data), (dense, before), (dense, template.exchanged({}))):
        session = onnxruntime.InferenceSession(written)
        (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(y), model(x), rtol=1e-4, atol=1e-4)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.conv(self.conv(x))


def test_a_survey_exchanges_layers_and_exports_the_rest(survey, monkeypatch):
    exported = []
    monkeypatch.setattr(surveys, "onnx_model", lambda module, x: exported.append(module) or b"")
    plan = Plan(PLANS)
    assert onnxruntime.InferenceSession(survey.onnx(plan, ["head"]))
    assert not exported
    survey.onnx(Plan({"head": LayerPlan("tt", (1, 1), 0.0)}), [])
    assert len(exported) == 1


def test_a_model_with_a_layer_called_twice_is_exported(monkeypatch):
    model, x, plan = Twice().eval(), torch.zeros(1, 4, 3, 3), LayerPlan("svd", (1,), 0.0)
    monkeypatch.setattr(surveys, "onnx_model", lambda module, x: b"exported")
    survey = surveys.Survey.of(model, inventory(model, x).layers, {"conv": [LayerPlan(), plan]}, x, 1)
    assert survey.onnx(Plan({"conv": plan}), []) == b"exported"
