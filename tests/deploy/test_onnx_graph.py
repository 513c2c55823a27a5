"""Graphs written directly compute what the modules compute, with the operators that torch's exporter writes."""

import warnings

import onnx
import onnxruntime
import pytest
import torch
from timm.layers import Conv2dSame
from torch import nn

from lrsearch.compress.inventory import inventory
from lrsearch.deploy import onnx_graph
from lrsearch.deploy.onnx_graph import onnx_model
from lrsearch.latency.micro_models import alone
from lrsearch.spec.plan import LayerPlan

LAYERS = {
    "tokens": (lambda: nn.Linear(16, 12), (2, 5, 16)), "vectors": (lambda: nn.Linear(16, 12), (3, 16)),
    "strided": (lambda: nn.Conv2d(8, 12, 3, stride=(2, 1), padding=(1, 2)), (2, 8, 9, 7)),
    "dilated": (lambda: nn.Conv2d(8, 12, 3, dilation=2), (1, 8, 9, 9)),
    "same": (lambda: Conv2dSame(8, 12, 3, stride=2), (1, 8, 9, 8)),
    "uneven": (lambda: nn.Conv2d(8, 12, (2, 3), padding="same"), (1, 8, 5, 6)),
    "depthwise": (lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8), (1, 8, 5, 6)),
    "conv1d": (lambda: nn.Conv1d(8, 12, 3, stride=2, padding=1), (2, 8, 9)),
    "reflect": (lambda: nn.Conv2d(8, 12, 3, padding=1, padding_mode="reflect"), (1, 8, 5, 6)),
}  # fmt: skip
PLANS = [
    LayerPlan(), LayerPlan("svd", (3,), 0.0), LayerPlan("spatial-svd", (3,), 0.0), LayerPlan("tucker2", (4, 3), 0.0),
    LayerPlan("cp", (3,), 0.0), LayerPlan("tt", (2, 3, 2), 0.0),
    LayerPlan(density=0.5, pattern="column"), LayerPlan(density=0.5, pattern="row"),
    LayerPlan("svd", (2,), 0.25, "column"), LayerPlan("svd", (2,), 0.25, "row"),
]  # fmt: skip


def cases():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, (build, shape) in LAYERS.items():
            base = build()
            spec = inventory(nn.Sequential(base), torch.zeros(shape)).layers[0]
            for plan in PLANS:
                if not plan.refusal(spec):
                    slow = name == "reflect" and plan not in (PLANS[0], PLANS[-2])  # all plans of it go through torch's slow exporter
                    yield pytest.param(base, spec, plan, shape, id=f"{name} {plan}", marks=[pytest.mark.slow] * slow)


@pytest.mark.parametrize(("base", "spec", "plan", "shape"), list(cases()))
@torch.no_grad()
def test_the_runtime_computes_what_the_module_computes(base, spec, plan, shape, monkeypatch):
    if not (getattr(base, "padding_mode", "zeros") == "reflect" or (plan.format == "tt" and spec.kernel == (1, 1))):
        monkeypatch.setattr(onnx_graph, "exported", lambda *_: pytest.fail("written by the exporter"))
    module, x = alone(base, spec, plan), torch.randn(shape)
    torch.testing.assert_close(torch.from_numpy(run(module, x)[0]), module(x), rtol=1e-4, atol=1e-4)


def run(module, x):
    session = onnxruntime.InferenceSession(onnx_model(module, x))
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})


def operators(data: bytes) -> list[str]:
    return [node.op_type for node in onnx.load_from_string(data).graph.node]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "plan"),
    [("tokens", PLANS[1]), ("vectors", PLANS[-1]), ("strided", PLANS[-2]), ("same", PLANS[2])],
    ids=str,
)  # fmt: skip
def test_the_operators_are_those_of_the_exporter(name, plan):
    build, shape = LAYERS[name]
    spec, x = inventory(nn.Sequential(base := build()), torch.zeros(shape)).layers[0], torch.zeros(shape)
    module = alone(base, spec, plan)
    assert operators(onnx_model(module, x)) == operators(onnx_graph.exported(module, x))


@pytest.mark.slow
@torch.no_grad()
def test_what_may_be_between_layers_is_written_as_by_the_exporter():
    between = [nn.ReLU(), nn.ReLU6(inplace=True), nn.GELU(), nn.GELU("tanh"), nn.Identity(), nn.Dropout()]
    module = nn.Sequential(*(part for act in between for part in (nn.Linear(6, 6), act)), nn.Linear(6, 4)).eval()
    x = torch.randn(2, 5, 6) * 5
    for layer in module[::2]:
        layer.weight.data *= 3  # so that what is above 6 and below 0 comes up everywhere
    torch.testing.assert_close(torch.from_numpy(run(module, x)[0]), module(x), rtol=1e-4, atol=1e-4)
    assert operators(onnx_model(module, x)) == operators(onnx_graph.exported(module, x))


@pytest.mark.slow
def test_any_other_module_isexported(tiny_model, tiny_data):
    x = tiny_data[0][:1]
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(run(tiny_model, x)[0]), tiny_model(x), rtol=1e-4, atol=1e-4)
