"""Deployed layers compute what compressed ones compute, also with a BatchNorm folded into them."""

import copy
from math import prod

import pytest
import torch
from catalogue import build, compressed, each_group, inputs
from torch import nn

from lrsearch.compress.formats.base import low_rank
from lrsearch.compress.modules import CompressedLayer
from lrsearch.deploy.deployed import deployed
from lrsearch.spec.pattern import pattern

NORMS = {
    "linear": nn.BatchNorm1d, "conv1d": nn.BatchNorm1d, "conv2d": nn.BatchNorm2d, "conv3d": nn.BatchNorm3d,
    "conv_transpose1d": nn.BatchNorm1d, "conv_transpose2d": nn.BatchNorm2d,
}


def norm(spec) -> nn.Module:
    """A BatchNorm after many batches of something."""
    made = NORMS[spec.kind](spec.rows // prod(spec.weight_shape[2:]) if spec.transposed else spec.rows).eval()
    for tensor in (made.running_mean, made.weight, made.bias):
        nn.init.normal_(tensor)
    nn.init.uniform_(made.running_var, 0.2, 3)
    return made


def near(value, expected):
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@each_group
@torch.no_grad()
def test_outputs_are_the_same_with_and_without_a_batch(cases):
    x = inputs(cases[0].layer)
    for case in cases:
        small = nn.Sequential(compressed(case))
        expected = small(x)
        for merged in ((), ("0",)):
            plain = deployed(small, merged=merged)
            near(plain(x), expected)
            near(plain(x[0]), expected[0])
        assert not any(p.requires_grad for p in plain.parameters())


@each_group
@torch.no_grad()
def test_batchnorm_goes_into_the_layer_where_its_rows_are_its_outputs(cases):
    x = inputs(cases[0].layer)
    x = x[:, 0] if cases[0].spec.kind == "linear" else x
    for case in cases:
        model = nn.Sequential(compressed(case), norm(case.spec))
        before = copy.deepcopy(model.state_dict())
        plain = deployed(model, x)
        near(plain(x), model(x))
        splits = not case.spec.plain or (case.plan.rank and not low_rank(case.plan.format).chained(case.spec))
        assert isinstance(plain[1], NORMS[case.spec.kind]) == bool(splits), case
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@each_group
def test_only_what_a_runtime_can_use_is_left(cases):
    """S that is not of whole columns or rows is one dense layer with L; nothing is unpacked as the model runs."""
    dense = type(build(cases[0].layer))
    for case in cases:
        plain = deployed(nn.Sequential(compressed(case)))
        whole = case.plan.density == 0 or pattern(case.plan.pattern).name in ("column", "row")
        weights = [m for m in plain.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
        assert whole or len(weights) == 1, case
        left = [m for m in plain.modules() if isinstance(m, CompressedLayer)]
        assert not left or not case.spec.plain or not low_rank(case.plan.format).chained(case.spec)
        one = [m for m in deployed(nn.Sequential(compressed(case)), merged=["0"]).modules() if isinstance(m, dense.__mro__[0] | nn.Conv2d)]
        assert len(one) == 1, case


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training):
    model = nn.Sequential(build("conv"), nn.BatchNorm2d(12)).train(training)
    state = copy.deepcopy(model.state_dict())
    deployed(model, inputs("conv"))
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(m.training == training for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
