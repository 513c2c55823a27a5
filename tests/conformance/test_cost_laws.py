"""Predicted costs are measured costs."""

from dataclasses import replace

import pytest
import torch
from catalogue import Case, build, compressed, each_group, inputs, spec_of
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lrsearch.compress.apply import compress
from lrsearch.compress.inventory import inventory
from lrsearch.compress.storage import Storage
from lrsearch.measure.count import cost_model, recount
from lrsearch.spec.cost import Cost, layer_cost
from lrsearch.spec.formats import FORMATS
from lrsearch.spec.plan import LayerPlan, Plan
from lrsearch.spec.storage import header_bytes


@torch.no_grad()
def macs(module, x):
    """Per example; torch counts two FLOPs each."""
    with FlopCounterMode(display=False) as counter:
        module(x)
    total, rest = divmod(counter.get_total_flops(), 2 * len(x))
    assert not rest
    return total


def measured(model, x, spec):
    """params, macs, and the bytes that a model of one layer is packed into."""
    packed = Storage((spec,)).pack(model)
    return sum(p.numel() for p in model.parameters()), macs(model, x), header_bytes([spec.name]) + sum(map(len, packed.values()))


def predicted(cost):
    return cost.params, cost.macs, cost.weight_bytes


def leaves_something(plan, spec):
    """The others are in a test of their own."""
    return bool(plan.rank) or plan.kept(spec) > 0


@each_group
def test_predicted_costs_of_a_layer_are_those_measured(cases):
    x = inputs(cases[0].layer)
    for case in cases:
        if leaves_something(case.plan, case.spec):
            small = compressed(case)
            bias = 0 if small.bias is None else small.bias.numel()
            fixed = Cost(params=bias, weight_bytes=4 * bias + header_bytes(["0"]))
            assert predicted(layer_cost(case.spec, case.plan) + fixed) == measured(nn.Sequential(small), x, case.spec), case


@each_group
def test_predicted_nonzero_macs_are_the_low_rank_ones_and_one_per_kept_value_and_position(cases):
    x, spec = inputs(cases[0].layer), cases[0].spec
    for case in cases:
        low_rank = macs(compressed(Case(case.layer, LayerPlan(case.plan.format, case.plan.rank, 0.0))), x) if case.plan.rank else 0
        small = compressed(case)
        positions = x[0, 0].numel() if spec.transposed else small(x).numel() // (len(x) * spec.rows)
        kept = 0 if small.values is None else int(small.sparse_weight().count_nonzero())
        assert layer_cost(spec, case.plan).nonzero_macs == low_rank + kept * positions, case


@each_group
def test_a_model_recounted_without_its_plan_is_what_the_plan_costs(cases):
    x = inputs(cases[0].layer)
    for case in cases:
        small, cost = compressed(case), layer_cost(case.spec, case.plan)
        found = recount(nn.Sequential(small), x)
        bias = 0 if small.bias is None else small.bias.numel()
        assert (found.params, found.macs, found.nonzero_macs) == (cost.params + bias, cost.macs, cost.nonzero_macs), case


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@each_group
def test_predicted_costs_of_a_model_are_those_measured(cases, dtype):
    name = cases[0].layer
    model, x, spec = nn.Sequential(build(name, dtype)), inputs(name, dtype), replace(spec_of(name), itemsize=dtype.itemsize)
    predict = cost_model(model, [spec], x)
    assert predicted(predict.dense) == measured(model, x, spec)
    for case in cases:
        if leaves_something(case.plan, spec):
            plan = Plan({"0": case.plan})
            assert predicted(predict(plan)) == measured(compress(model, [spec], plan), x, spec), case


@pytest.mark.parametrize("name", ["linear", "conv", "conv1d strided"])
def test_a_layer_of_which_nothing_is_left_costs_its_bias(name):
    model, x, spec, plan = nn.Sequential(build(name)), inputs(name), spec_of(name), Plan({"0": LayerPlan(density=0.0)})
    assert predicted(cost_model(model, [spec], x)(plan)) == measured(compress(model, [spec], plan), x, spec)


@st.composite
def convolutions(draw):
    """Any small Conv2d and an input that it accepts."""
    def pair(low, high):
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    groups, kernel = draw(st.integers(1, 2)), pair(1, 3)
    shape = (draw(st.integers(1, 2)), groups * draw(st.integers(1, 6)), *pair(5, 8))
    layer = nn.Conv2d(shape[1], groups * draw(st.integers(1, 6)), kernel, pair(1, 3), pair(0, 2), pair(1, 2), groups, draw(st.booleans()))
    return layer.eval(), torch.randn(shape)


@given(convolutions(), st.sampled_from(["dense", *FORMATS]), st.floats(0, 1), st.floats(0, 1), st.sampled_from(["row", "unstructured"]))
@settings(deadline=None, max_examples=100, derandomize=True)
def test_costs_and_outputs_of_any_convolution_under_any_plan(layer_and_input, form, ratio, density, kind):
    layer, x = layer_and_input
    model = nn.Sequential(layer)
    spec = inventory(model, x).layers[0]
    assume(form == "dense" or not FORMATS[form].refusal(spec))
    plan = LayerPlan(form, FORMATS[form].rank(spec, ratio) if form != "dense" else (), density, kind)
    assume(not plan.refusal(spec) and not plan.untouched and leaves_something(plan, spec))
    small = compress(model, [spec], Plan({"0": plan}))
    assert predicted(cost_model(model, [spec], x)(Plan({"0": plan}))) == measured(small, x, spec)
    with torch.no_grad():
        for p in small.parameters():
            p.normal_()
        expected = torch.func.functional_call(layer, {"weight": small[0].weight, "bias": small[0].bias}, (x,))
        torch.testing.assert_close(small(x), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
