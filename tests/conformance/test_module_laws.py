"""Compressed modules compute what the dense module with L + S written in computes, and are as it is otherwise."""

import pytest
import torch
from catalogue import build, compressed, each_group, inputs, of_layer, random_fit
from torch import nn

from lrsearch.compress.apply import compress, write_effective
from lrsearch.compress.modules import CompressedLayer, compressed_layer
from lrsearch.spec.plan import Plan

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}  # of the largest output


def dense(case, dtype=torch.float32):
    """The base layer with L + S as its weight."""
    model = nn.Sequential(build(case.layer, dtype))
    write_effective(model, {"0": random_fit(case.spec, case.plan)})
    return model[0]


def assert_near(value, expected, case):
    assert value.dtype == expected.dtype, case
    tolerance = TOLERANCE[expected.dtype] * float(expected.abs().max())
    torch.testing.assert_close(value, expected, rtol=0, atol=tolerance, msg=lambda text: f"{case}: {text}")


@each_group
@torch.no_grad()
def test_output_is_that_of_the_effective_weight_with_and_without_a_batch(cases):
    x = inputs(cases[0].layer)
    for case in cases:
        small, whole = compressed(case), dense(case)
        expected = whole(x)
        assert_near(small(x), expected, case)
        assert_near(small(x[0]), expected[0], case)
        assert_near(small.weight, whole.weight, case)


@pytest.mark.parametrize("name", ["linear", "conv 1x1", "conv"])
@torch.no_grad()
def test_no_examples_have_no_outputs(name):
    nothing = inputs(name)[:0]
    assert {compressed(case)(nothing).shape for case in of_layer(name)} == {build(name)(nothing).shape}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@each_group
@torch.no_grad()
def test_the_floating_type_is_preserved(cases, dtype):
    x = inputs(cases[0].layer, dtype)
    for case in cases:
        small = compressed(case, dtype)
        assert {p.dtype for p in small.parameters()} == {dtype}
        assert_near(small(x), dense(case, dtype)(x), case)


@each_group
@torch.no_grad()
def test_factors_of_a_channels_last_layer_are_channels_last(cases):
    base, last = build(cases[0].layer), torch.channels_last
    if base.weight.dim() == 4 and max(base.weight.shape[2:]) > 1:  # a 1x1 kernel is both
        base, x = base.to(memory_format=last), inputs(cases[0].layer).to(memory_format=last)
        for case in cases:
            small = compressed_layer(base, case.spec, case.plan, random_fit(case.spec, case.plan))
            assert_near(small(x), dense(case)(x), case)
            assert all(f.is_contiguous(memory_format=last) for f in small.factors if f.dim() == 4), case


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", ["conv", "conv 1x1"])
@torch.no_grad()
def test_outputs_lie_in_memory_as_the_dense_layers_do(name, memory_format):
    """So a model that takes a view of them, as it may of a dense layer's, still runs."""
    base, x = build(name).to(memory_format=memory_format), inputs(name).to(memory_format=memory_format)
    strides = base(x).stride()
    layers = {case: compressed_layer(base, case.spec, case.plan, random_fit(case.spec, case.plan)) for case in of_layer(name)}
    assert [case for case, small in layers.items() if small(x).stride() != strides] == []


@each_group
def test_the_base_model_is_bit_identical_afterwards(cases):
    name = cases[0].layer
    model = nn.Sequential(build(name), nn.ReLU())
    layer, before = model[0], {k: v.clone() for k, v in model.state_dict().items()}
    for i, case in enumerate(cases):
        model.train(training := bool(i % 2))
        small = compress(model, [case.spec], Plan({"0": case.plan}), {"0": random_fit(case.spec, case.plan)})
        assert isinstance(small[0], CompressedLayer)
        assert small[0].training == small[1].training == training
        small(inputs(name)).sum().backward()
        with torch.no_grad():
            for tensor in (*small.parameters(), *small.buffers()):
                tensor.add_(1)
        assert model[0] is layer
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), case
        assert all(p.grad is None for p in model.parameters()), case
        assert all(m.training == training for m in model.modules()), case
