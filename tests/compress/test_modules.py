import copy
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lrsearch.compress.apply import compress, write_effective
from lrsearch.compress.fit import FitProblem
from lrsearch.compress.inventory import inventory, layer_spec
from lrsearch.compress.matricize import gram, input_rows, to_matrix
from lrsearch.compress.modules import CompressedLayer, compressed_layer
from lrsearch.compress.sparsify import pack_bits, unpack_bits
from lrsearch.spec.plan import LayerPlan, Plan

PLANS = [LayerPlan(density=0.4), LayerPlan("svd", (2,), 0.0), LayerPlan("svd", (2,), 0.3)]
TINY_PLAN = Plan({
    "stem": LayerPlan("svd", (3,), 0.1), "depthwise": LayerPlan(density=0.5), "grouped": LayerPlan(density=0.25),
    "pointwise": LayerPlan("svd", (4,), 0.0), "head": LayerPlan(density=0.3),
})  # fmt: skip


def fit_of(layer, plan, x):
    spec = layer_spec(layer, "0")
    problem = FitProblem(to_matrix(layer.weight.detach(), spec.groups), gram(input_rows(layer, x)))
    return problem.fit(plan.rank, plan.kept(spec))


def compressed_tiny(model, plan=TINY_PLAN):
    """``model`` under ``plan`` and the fits, which here are against white inputs."""
    layers = inventory(model, torch.randn(2, 3, 12, 12)).layers
    fits = {}
    for spec in layers:
        if not plan[spec.name].untouched:
            matrix = to_matrix(model.get_submodule(spec.name).weight.detach(), spec.groups)
            problem = FitProblem(matrix, torch.eye(spec.columns).expand(spec.groups, -1, -1))
            fits[spec.name] = problem.fit(plan[spec.name].rank, plan[spec.name].kept(spec))
    return compress(model, layers, plan, fits), fits


@pytest.fixture(params=PLANS, ids=str)
def plan(request, layer):
    """Grouped convolutions have no low-rank part, so there the sparse plan stands for all."""
    return request.param if layer_spec(layer, "").max_rank else PLANS[0]


def test_output_is_that_of_the_effective_weight(layer, layer_input, plan):
    fit = fit_of(layer, plan, layer_input)
    model = nn.Sequential(layer)
    small = compress(model, [layer_spec(layer, "0")], Plan({"0": plan}), {"0": fit})
    assert isinstance(small[0], CompressedLayer)
    write_effective(model, {"0": fit})
    torch.testing.assert_close(small(layer_input), model(layer_input), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(small(layer_input[0]), model(layer_input[0]), rtol=1e-4, atol=1e-4)


def test_stores_the_factors_the_mask_and_the_bias_alone(layer, layer_input):
    plan = PLANS[2] if layer_spec(layer, "").max_rank else PLANS[0]
    spec = layer_spec(layer, "0")
    state = compressed_layer(layer, spec, plan, fit_of(layer, plan, layer_input)).state_dict()
    shapes = {"values": (plan.kept(spec),), "bitmask": (-(-spec.numel // 8),)}
    if plan.rank:
        shapes |= {"left": (spec.rows, 2), "right": (2, spec.columns)}
    if layer.bias is not None:
        shapes["bias"] = (spec.rows,)
        assert torch.equal(state["bias"], layer.bias)
    assert {k: tuple(v.shape) for k, v in state.items()} == shapes


def test_whole_model_equals_its_effective_weight_form(tiny_model, tiny_data):
    small, fits = compressed_tiny(tiny_model)
    write_effective(tiny_model, fits)
    torch.testing.assert_close(small(tiny_data[0]), tiny_model(tiny_data[0]), rtol=1e-4, atol=1e-4)


def test_state_dict_round_trip_carries_the_mask(tiny_model, tiny_data):
    small, _ = compressed_tiny(tiny_model)
    empty = compress(tiny_model, inventory(tiny_model, tiny_data[0][:2]).layers, TINY_PLAN)
    assert not torch.allclose(empty(tiny_data[0]), small(tiny_data[0]))
    empty.load_state_dict(small.state_dict())
    assert torch.equal(empty(tiny_data[0]), small(tiny_data[0]))


def test_export_gives_the_same_outputs(tiny_model, tiny_data):
    small, _ = compressed_tiny(tiny_model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(small, (tiny_data[0][:4],)).module()
    torch.testing.assert_close(exported(tiny_data[0][:4]), small(tiny_data[0][:4]))


def test_export_of_every_kind_of_layer(layer, layer_input):
    plan = PLANS[2] if layer_spec(layer, "").max_rank else PLANS[0]
    small = compressed_layer(layer, layer_spec(layer, "0"), plan, fit_of(layer, plan, layer_input)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(small, (layer_input,)).module()
    torch.testing.assert_close(exported(layer_input), small(layer_input))


def test_gradients_flow_to_every_factor(tiny_model, tiny_data):
    small, _ = compressed_tiny(tiny_model)
    nn.functional.cross_entropy(small(tiny_data[0]), tiny_data[1]).backward()
    names = {n for n, p in small.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert names == {n for n, _ in small.named_parameters()}
    assert {"stem.left", "stem.right", "stem.values", "head.bias"} <= names


def test_training_keeps_the_zeros_of_the_sparse_part(tiny_model, tiny_data):
    small, fits = compressed_tiny(tiny_model)
    optimizer = torch.optim.SGD(small.parameters(), 0.1)
    nn.functional.cross_entropy(small(tiny_data[0]), tiny_data[1]).backward()
    optimizer.step()
    moved = small.head.sparse_weight()
    assert not torch.equal(moved, fits["head"].sparse[0])
    assert torch.equal(moved != 0, fits["head"].mask[0])


def test_base_model_is_bit_identical_afterwards(tiny_model, tiny_data):
    before = {k: v.clone() for k, v in tiny_model.state_dict().items()}
    modules = dict(tiny_model.named_modules())
    small, _ = compressed_tiny(tiny_model.train())
    small.train()(tiny_data[0]).sum().backward()
    with torch.no_grad():
        for p in small.parameters():
            p.add_(1)
    assert all(torch.equal(v, before[k]) for k, v in tiny_model.state_dict().items())
    assert dict(tiny_model.named_modules()) == modules
    assert all(m.training for m in tiny_model.modules())
    assert all(p.grad is None for p in tiny_model.parameters())


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


@given(st.lists(st.booleans(), min_size=1, max_size=40))
@settings(deadline=None)
def test_bits_round_trip(bits):
    mask = torch.tensor(bits)
    packed = pack_bits(mask)
    assert packed.dtype == torch.uint8
    assert len(packed) == -(-len(bits) // 8)
    assert packed.tolist() == [sum(b << i for i, b in enumerate(bits[k : k + 8])) for k in range(0, len(bits), 8)]
    assert torch.equal(unpack_bits(packed, len(bits)), mask)
