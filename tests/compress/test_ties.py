"""Layers with one weight are one decision, from the statistics of all of them to the file."""

import copy

import pytest
import torch
from torch import nn

from lrsearch.compress import artifact
from lrsearch.compress.apply import compress, write_effective
from lrsearch.compress.inventory import inventory
from lrsearch.compress.modules import CompressedLayer
from lrsearch.compress.parametrised import copied
from lrsearch.compress.prepare import prepare
from lrsearch.compress.storage import Storage
from lrsearch.deploy.deployed import deployed
from lrsearch.measure.count import cost_model, dense_macs
from lrsearch.profile.statistics import collect
from lrsearch.spec.plan import LayerPlan, Plan


class Tied(nn.Module):
    """``a`` and ``c`` have one weight, each a bias of its own."""

    def __init__(self, data):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.norm, self.c, self.head = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Linear(8, 3)
        if data:
            self.c.weight.data = self.a.weight.data
        else:
            self.c.weight = self.a.weight

    def forward(self, x):
        return self.head(self.c(self.norm(self.a(x)).relu()).relu())


@pytest.fixture(params=[True, False], ids=["data", "parameter"])
def base(request):
    return Tied(request.param).eval()


X = torch.randn(20, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("plan", [LayerPlan("svd", (2,), 0.3), LayerPlan(density=0.4), LayerPlan("svd", (2,), 0.0)], ids=str)
def test_both_have_the_same_factors_and_their_own_bias(base, plan, white_fits, tmp_path):
    ready = prepare(base)
    layers = inventory(ready, X).layers
    whole = Plan({"a": plan})
    fits = white_fits(ready, layers, whole)
    small, dense = compress(ready, layers, whole, fits).eval(), copy.deepcopy(ready)
    write_effective(dense, fits)
    assert isinstance(small.c, CompressedLayer)
    assert torch.equal(dense.c.weight, dense.a.weight)
    assert torch.equal(small.c.bias, base.c.bias)
    with torch.no_grad():
        torch.testing.assert_close(small(X), dense(X))
        torch.testing.assert_close(deployed(small, X)(X), dense(X), rtol=1e-4, atol=1e-5)
    cost = cost_model(ready, layers, X)(whole)
    assert (cost.params, cost.macs) == (sum(p.numel() for p in small.parameters()), dense_macs(small, X))
    artifact.save(small, whole, tmp_path / "model", {}, Storage(layers))
    assert cost.weight_bytes == (tmp_path / "model" / artifact.WEIGHTS).stat().st_size
    loaded = artifact.load(tmp_path / "model", base)
    assert torch.equal(loaded(X), small(X))
    assert loaded.c.values is loaded.a.values
    small(X).sum().backward()
    assert all(p.grad is not None for p in small.parameters())


def test_gram_matrices_sum_the_inputs_of_both(base):
    ready = prepare(base)
    layers = inventory(ready, X).layers
    found = collect(ready, layers, [X], [X])["a"].gram[0]
    with torch.no_grad():
        inner = ready.norm(ready.a(X)).relu()
    torch.testing.assert_close(found, (X.T @ X + inner.T @ inner) / 40)


def test_sketches_are_of_both_uses(base):
    ready = prepare(base)
    layers = inventory(ready, X).layers
    sketch = collect(ready, layers, [X], [X])["a"].sketches
    alone = copy.deepcopy(ready)
    alone.c.weight = nn.Parameter(alone.c.weight.detach().clone())
    parts = inventory(alone, X).layers
    statistics = collect(alone, parts, [X], [X])
    torch.testing.assert_close(sketch.float(), (statistics["a"].sketches + statistics["c"].sketches).float(), rtol=0.02, atol=0.02)


def test_layers_of_different_kinds_and_embeddings_stay_dense():
    model = nn.Sequential(nn.Embedding(5, 5), nn.Linear(5, 5), nn.Linear(5, 2))
    model[1].weight = model[0].weight
    found = inventory(prepare(model), torch.zeros(2, 3, dtype=torch.long))
    assert [layer.name for layer in found.layers] == ["2"]
    assert found.refused["1"] == "its weight is tied to that of 0, an Embedding"


def test_a_copy_shares_what_the_model_shares_by_data_alone():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[2].weight.data = model[0].weight.data
    made = copied(model)
    pointers = [layer.weight.data_ptr() for layer in made]
    assert pointers[0] == pointers[2]
    assert len({*pointers, *(layer.weight.data_ptr() for layer in model)}) == 4
    assert sum(p.numel() for p in prepare(made).parameters()) == 2 * 16 + 3 * 4
