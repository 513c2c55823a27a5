"""Exported models give the same outputs."""

import onnxruntime
import pytest
import torch
from catalogue import FORMATS, LAYERS, PATTERNS, compressed, each_group, inputs, of_layer
from torch import nn


class Beside(nn.Module):
    """Compressed layers side by side, all on one input or each on its own."""

    def __init__(self, cases):
        super().__init__()
        self.layers = nn.ModuleList(compressed(case) for case in cases)

    def forward(self, *inputs):
        own = inputs if len(inputs) > 1 else inputs * len(self.layers)
        return tuple(layer(x) for layer, x in zip(self.layers, own, strict=True))


def assert_equal(outputs, expected, cases):
    for case, value, right in zip(cases, outputs, expected, strict=True):
        torch.testing.assert_close(value, right, rtol=1e-4, atol=1e-4, msg=lambda text, case=case: f"{case}: {text}")


@each_group
@torch.no_grad()
def test_torch_export_gives_the_same_outputs_for_every_plan(cases):
    model, x = Beside(cases).eval(), inputs(cases[0].layer)
    assert_equal(torch.export.export(model, (x,)).module()(x), model(x), cases)


def covering(plans=1):
    """Of every kind of layer one plan or two, so that every format, alone and beside S, and every pattern comes up."""
    cases = [of_layer(name) for name in LAYERS]
    return [some[(25 * i + 5 + j) % len(some)] for i, some in enumerate(cases) for j in (0, len(some) // 2)[:plans]]


def test_the_cases_for_onnx_cover_every_pattern_and_layer_and_format():
    assert {case.layer for case in covering()} == set(LAYERS)
    assert {case.plan.pattern for case in covering()} == set(PATTERNS)
    assert {(case.plan.format, case.plan.family) for case in covering() if case.plan.rank} == {
        (form, family) for form in FORMATS for family in ("low-rank", "low-rank+sparse")
    }  # fmt: skip


@pytest.mark.parametrize("plans", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["linear", "conv1d", "conv2d"])
@torch.no_grad()
def test_onnx_gives_the_same_outputs(kind, plans, tmp_path):
    cases = [case for case in covering(plans) if case.spec.kind == kind]
    model, x = Beside(cases).eval(), [inputs(case.layer) for case in cases]
    torch.onnx.export(model, tuple(x), tmp_path / "model.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    outputs = session.run(None, {name: tensor.numpy() for name, tensor in zip(names, x, strict=True)})
    assert_equal([torch.from_numpy(value) for value in outputs], model(*x), cases)
