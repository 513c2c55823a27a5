"""Prepared attention computes what torch's does, with projections that are layers."""

import copy

import pytest
import torch
from torch import nn

from lrsearch.compress import artifact
from lrsearch.compress.apply import compress, write_effective
from lrsearch.compress.attention import Attention
from lrsearch.compress.faithful import plain_layers
from lrsearch.compress.inventory import inventory
from lrsearch.compress.prepare import prepare
from lrsearch.compress.storage import Storage
from lrsearch.measure.count import cost_model, dense_macs
from lrsearch.spec.plan import LayerPlan, Plan


def noisy(module):
    """With biases that are not zero."""
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return module.eval()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def pair(**options):
    model = noisy(nn.MultiheadAttention(8, 2, **options))
    return model, prepare(model)


def inputs(**sizes):
    return torch.randn(3, 5, 8), torch.randn(3, 7, sizes.get("kdim", 8)), torch.randn(3, 7, sizes.get("vdim", 8))


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"kdim": 6, "vdim": 4}, {"kdim": 6}], ids=str)
@pytest.mark.parametrize("weights", [True, False])
def test_cross_attention_is_the_same(options, weights):
    model, ready = pair(batch_first=True, **options)
    x = inputs(**options)
    theirs, ours = model(*x, need_weights=weights), ready(*x, need_weights=weights)
    torch.testing.assert_close(ours, theirs)
    assert isinstance(ready, Attention)
    assert type(model) is nn.MultiheadAttention


@pytest.mark.parametrize("grad", [True, False])  # without gradients torch takes a path of its own
@pytest.mark.parametrize("weights", [True, False])
def test_masks_are_those_of_torch(weights, grad):
    model, ready = pair(batch_first=True)
    x = torch.randn(3, 5, 8)
    padding, causal = torch.arange(5) >= torch.tensor([[5], [3], [4]]), torch.ones(5, 5).triu(1).bool()
    per_head = torch.randn(6, 5, 5)
    for mask in ({"key_padding_mask": padding}, {"attn_mask": causal}, {"attn_mask": per_head}, {"attn_mask": causal, "is_causal": True},
                 {"attn_mask": per_head, "key_padding_mask": torch.zeros(3, 5).masked_fill(padding, float("-inf"))}):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(ready(x, x, x, need_weights=weights, **mask), model(x, x, x, need_weights=weights, **mask))


def test_sequences_first_single_examples_and_weights_of_each_head():
    model, ready = pair()
    q, k, v = (x.transpose(0, 1) for x in inputs())
    torch.testing.assert_close(ready(q, k, v, average_attn_weights=False), model(q, k, v, average_attn_weights=False))
    torch.testing.assert_close(ready(q[:, 0], k[:, 0], v[:, 0]), model(q[:, 0], k[:, 0], v[:, 0]))


def test_training_drops_attention_and_gradients_reach_all_projections():
    model, ready = pair(batch_first=True, dropout=0.5)
    x = torch.randn(3, 5, 8)
    assert not torch.equal(ready.train()(x, x, x)[0], ready(x, x, x)[0])
    ready(x, x, x)[0].square().sum().backward()
    assert {n for n, p in ready.named_parameters() if p.grad is not None} == {
        f"{part}.{key}" for part in ("q", "k", "v", "out_proj") for key in ("weight", "bias")
    }
    torch.testing.assert_close(torch.cat([ready.q.weight, ready.k.weight, ready.v.weight]), model.in_proj_weight)


def test_attention_that_adds_keys_stays_and_says_why():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.head = nn.MultiheadAttention(8, 2, add_bias_kv=True, batch_first=True), nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.attention(x, x, x)[0])

    model = Model()
    assert prepare(model) is model
    assert "add_bias_kv" in inventory(model, torch.randn(2, 5, 8)).refused["attention"]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("norm_first", [True, False])
def test_encoders_with_padding_are_the_same_and_every_layer_can_be_compressed(norm_first):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first)
    model = noisy(nn.TransformerEncoder(layer, 2, nn.LayerNorm(8), enable_nested_tensor=not norm_first))
    x, ready = torch.randn(3, 5, 8), prepare(model)
    left = torch.arange(5) < torch.tensor([[0], [2], [1]])
    for padding in (None, torch.arange(5) >= torch.tensor([[5], [3], [4]]), left):
        with torch.no_grad():
            torch.testing.assert_close(ready(x, src_key_padding_mask=padding), model(x, src_key_padding_mask=padding))
    causal = torch.ones(5, 5).triu(1).bool()
    with torch.no_grad():
        torch.testing.assert_close(ready(x, mask=causal), model(x, mask=causal))
    found = inventory(ready, x)
    assert len(found.layers) == 2 * 6
    assert found.refused == {}


def test_compressed_encoders_compute_cost_and_load_as_planned(tmp_path, white_fits):
    base = noisy(nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 3)))
    x, ready = torch.randn(3, 5, 8), prepare(base)
    found = inventory(ready, x)
    assert plain_layers(ready, found, x) == found
    plan = Plan({layer.name: LayerPlan("svd", (2,), 0.2) for layer in found.layers})
    fits = white_fits(ready, found.layers, plan)
    small = compress(ready, found.layers, plan, fits).eval()
    dense = copy.deepcopy(ready)
    write_effective(dense, fits)
    with torch.no_grad():
        torch.testing.assert_close(small(x), dense(x), rtol=1e-4, atol=1e-5)
        artifact.save(small, plan, tmp_path / "model", {}, Storage(found.layers))
        assert torch.equal(artifact.load(tmp_path / "model", base)(x), small(x))
    cost = cost_model(ready, found.layers, x)(plan)
    assert (cost.params, cost.macs) == (sum(p.numel() for p in small.parameters()), dense_macs(small, x))


def test_the_vision_transformer_of_torchvision():
    models = pytest.importorskip("torchvision.models")
    model = models.VisionTransformer(32, 16, 2, 2, 16, 32, num_classes=4).eval()
    x, ready = torch.randn(2, 3, 32, 32), prepare(model)
    with torch.no_grad():
        torch.testing.assert_close(ready(x), model(x))
    found = inventory(ready, x)
    assert len(found.layers) == 2 + 2 * 6
    assert found.refused.keys() == {"encoder.pos_embedding"}
