import copy

import pytest
import torch
from torch import nn

from lrsearch.compress.apply import compress, write_effective
from lrsearch.compress.fit import Decomposition
from lrsearch.compress.inventory import inventory, layer_spec
from lrsearch.compress.matricize import to_matrix
from lrsearch.compress.modules import CompressedLayer, compressed_layer
from lrsearch.measure.count import cost_model, dense_macs
from lrsearch.spec.formats import FORMATS
from lrsearch.spec.pattern import pattern
from lrsearch.spec.plan import LayerPlan, Plan

TINY_PLAN = Plan({
    "stem": LayerPlan("svd", (3,), 0.1), "depthwise": LayerPlan(density=0.5), "grouped": LayerPlan(density=0.25),
    "pointwise": LayerPlan("svd", (4,), 0.0), "head": LayerPlan(density=0.3),
})  # fmt: skip


@pytest.fixture
def small_and_fits(tiny_model, layers, white_fits):
    """The tiny model under its plan, and the fits of its layers."""
    fits = white_fits(tiny_model, layers, TINY_PLAN)
    return compress(tiny_model, layers, TINY_PLAN, fits), fits


@pytest.fixture
def small(small_and_fits):
    return small_and_fits[0]


def test_output_is_that_of_the_effective_weight(layer, layer_input, plans, decomposed):
    spec, dense = layer_spec(layer, "0"), nn.Sequential(layer)
    for plan in plans:
        fit = decomposed(spec, plan)
        small = compress(dense, [spec], Plan({"0": plan}), {"0": fit})
        assert isinstance(small[0], CompressedLayer)
        effective = copy.deepcopy(dense)
        write_effective(effective, {"0": fit})
        torch.testing.assert_close(small(layer_input), effective(layer_input), rtol=1e-4, atol=1e-4, msg=str(plan))
        torch.testing.assert_close(small(layer_input[0]), effective(layer_input[0]), rtol=1e-4, atol=1e-4, msg=str(plan))
        torch.testing.assert_close(small[0].weight, effective[0].weight, rtol=1e-5, atol=1e-5, msg=str(plan))


def test_every_kind_of_layer_is_tried_with_sparse_and_all_but_depthwise_with_low_rank_plans(layer, plans):
    families = {plan.family for plan in plans}
    assert families == ({"sparse"} if layer_spec(layer, "").depthwise else {"sparse", "low-rank", "low-rank+sparse"})


def test_stores_the_factors_the_values_the_mask_and_the_bias_alone(layer, plans, decomposed):
    spec = layer_spec(layer, "0")
    for plan in plans:
        state = compressed_layer(layer, spec, plan, decomposed(spec, plan)).state_dict()
        factors = FORMATS[plan.format].shapes(spec, plan.rank) if plan.rank else ()
        shapes = {f"factors.{k}": shape for k, shape in enumerate(factors)}
        if plan.density:
            shapes |= {"values": (plan.kept(spec),), "bitmask": (-(-pattern(plan.pattern).atoms(spec) // 8),)}
        if layer.bias is not None:
            shapes["bias"] = (spec.rows,)
            assert torch.equal(state["bias"], layer.bias)
        assert {k: tuple(v.shape) for k, v in state.items()} == shapes


def test_whole_model_equals_its_effective_weight_form(tiny_model, tiny_data, small_and_fits):
    small, fits = small_and_fits
    write_effective(tiny_model, fits)
    torch.testing.assert_close(small(tiny_data[0]), tiny_model(tiny_data[0]), rtol=1e-4, atol=1e-4)


def test_state_dict_round_trip_carries_the_mask(tiny_model, tiny_data, layers, small):
    empty = compress(tiny_model, layers, TINY_PLAN)
    assert not torch.allclose(empty(tiny_data[0]), small(tiny_data[0]))
    empty.load_state_dict(small.state_dict())
    assert torch.equal(empty(tiny_data[0]), small(tiny_data[0]))


def test_gradients_flow_to_every_factor(small, tiny_data):
    nn.functional.cross_entropy(small(tiny_data[0]), tiny_data[1]).backward()
    names = {n for n, p in small.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert names == {n for n, _ in small.named_parameters()}
    assert {"stem.factors.0", "stem.factors.1", "stem.values", "head.bias"} <= names


def test_training_keeps_the_zeros_of_the_sparse_part(small_and_fits, tiny_data):
    small, fits = small_and_fits
    optimizer = torch.optim.SGD(small.parameters(), 0.1)
    nn.functional.cross_entropy(small(tiny_data[0]), tiny_data[1]).backward()
    optimizer.step()
    moved = small.head.sparse_weight()
    assert not torch.equal(moved, fits["head"].sparse[0])
    assert torch.equal(moved != 0, fits["head"].mask[0])


def test_base_model_is_bit_identical_afterwards(tiny_model, tiny_data, layers, white_fits, left_alone):
    tiny_model.train()
    with left_alone(tiny_model):
        small = compress(tiny_model, layers, TINY_PLAN, white_fits(tiny_model, layers, TINY_PLAN))
        small.train()(tiny_data[0]).sum().backward()
        with torch.no_grad():
            for p in small.parameters():
                p.add_(1)


def test_compressed_layer_has_the_mode_and_dtype_of_the_base():
    base = nn.Linear(8, 8).to(torch.bfloat16).eval()
    small = compress(nn.Sequential(base), [layer_spec(base, "0")], Plan({"0": LayerPlan("svd", (2,), 0.5)}))
    assert not small[0].training
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("base", [nn.Linear(4, 3), nn.Conv2d(4, 3, 1)], ids=["linear", "conv"])
def test_nothing_kept_leaves_the_bias(base):
    small = compressed_layer(base, layer_spec(base, "0"), LayerPlan(density=0.0))
    x = torch.randn(2, 4, 5, 4)
    expected = base(torch.zeros_like(x))
    torch.testing.assert_close(small(x), expected)


def test_a_layer_in_two_places_is_replaced_in_both_or_refused():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(8, 8)
            self.second = self.first
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.second(self.first(x).relu()))

    model, x = Twice(), torch.randn(4, 8)
    found = inventory(model, x)
    if "first" in found.refused:
        return
    small = compress(model, found.layers, Plan({"first": LayerPlan(density=0.5)}))
    assert small.second is small.first


def test_layers_whose_parent_reads_their_weight_are_refused_or_still_run():
    """nn.TransformerEncoderLayer hands ``linear1.weight`` to a fused kernel in eval mode."""
    model, x = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 2)).eval(), torch.randn(2, 5, 8)
    layers = inventory(model, x).layers
    small = compress(copy.deepcopy(model), layers, Plan({spec.name: LayerPlan(density=0.5) for spec in layers}))
    with torch.no_grad():
        assert small(x).shape == (2, 5, 2)


def test_a_parent_that_reads_the_dtype_and_device_of_a_weight_does_not_pay_for_l_plus_s(white_fits):
    """EdgeNeXt and XCiT do in every forward pass."""

    class Parent(nn.Sequential):
        def forward(self, x):
            return super().forward(x.to(self[0].weight.device, self[0].weight.dtype))

    model, x = Parent(nn.Conv2d(4, 8, 1), nn.Flatten(), nn.Linear(8 * 9, 2)).eval(), torch.randn(2, 4, 3, 3)
    layers = inventory(model, x).layers
    for plan in (LayerPlan("svd", (2,), 0.0), LayerPlan("svd", (2,), 0.5), LayerPlan(density=0.5)):
        whole = Plan({"0": plan, "2": plan})
        small = compress(model, layers, whole, white_fits(model, layers, whole))
        assert dense_macs(small, x) == cost_model(model, layers, x)(whole).macs, plan


def test_a_whole_weight_has_no_indices_and_is_not_written_into(layer, layer_input):
    """As where a layer is tried: indices would take twice the memory of the weight."""
    spec = layer_spec(layer, "0")
    matrix = to_matrix(layer.weight.detach(), spec)
    fit = Decomposition(spec, LayerPlan(), (), matrix, torch.ones_like(matrix, dtype=torch.bool))
    small = compressed_layer(layer, spec, LayerPlan(), fit)
    assert small.index is None
    small.load_state_dict(small.state_dict())
    assert small.index is None
    assert torch.equal(small.whole_weight(), layer.weight)
    small.weight.data.zero_()
    torch.testing.assert_close(small(layer_input), layer(layer_input))
