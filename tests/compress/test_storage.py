import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from lrsearch.compress import artifact
from lrsearch.compress.apply import compress
from lrsearch.compress.inventory import inventory
from lrsearch.compress.storage import Storage
from lrsearch.errors import ConfigError, ScoreError
from lrsearch.measure.count import cost_model
from lrsearch.spec.plan import LayerPlan, Plan


class Tied(nn.Module):
    """An embedding tied to the head, one layer under two names, and buffers of every kind; ``(n, 5)`` indices → ``(n, 5, 7)``."""

    def __init__(self):
        super().__init__()
        self.table, self.mix, self.norm = nn.Embedding(7, 6), nn.Linear(6, 6), nn.BatchNorm1d(5)
        self.again = self.mix
        self.head = nn.Linear(6, 7, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("scale", torch.randn(3, 2))
        self.register_buffer("shift", torch.randn(5), persistent=False)

    def forward(self, x):
        return self.head(self.norm(self.again(self.mix(self.table(x)))) + self.scale.sum() + self.shift[:, None])


@pytest.fixture
def tied():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = Tied().train()
        model(torch.randint(7, (8, 5)))
    return model.eval()


@pytest.mark.parametrize("values", ["float32", "float16", "bfloat16", "int8"])
@pytest.mark.parametrize("plan", [Plan(), Plan({"mix": LayerPlan("svd", (2,), 0.2)})], ids=["dense", "compressed"])
def test_shared_tensors_are_stored_once_and_everything_persistent_comes_back(tied, plan, values, tmp_path):
    x = torch.randint(7, (8, 5))
    layers = inventory(tied, x).layers
    assert [layer.name for layer in layers] == ["mix"]
    storage, base = Storage(layers, values), Tied()
    small = compress(tied, layers, plan)
    artifact.save(small, plan, tmp_path / "model", {}, storage)
    assert (tmp_path / "model" / artifact.WEIGHTS).stat().st_size == cost_model(tied, layers, x, values)(plan).weight_bytes
    base.shift.copy_(tied.shift)
    again = artifact.load(tmp_path / "model", base)
    assert again.head.weight is again.table.weight
    assert again.again is again.mix
    assert int(again.norm.num_batches_tracked) == 1
    assert torch.equal(again.scale, tied.scale)  # a buffer keeps its type
    storage.round_dense(small, besides=plan.layers)
    assert torch.equal(again(x), small(x))


def test_16_bits_are_for_all_parameters_of_two_dimensions_and_int8_for_matrices(tied):
    layers = inventory(tied, torch.randint(7, (8, 5))).layers
    other, norm_and_scale = 7 * 6, 6 + 4 * 5 + 6
    sizes = {values: Storage(layers, values).rest_bytes(tied) for values in ("float32", "float16", "int8")}
    kept = 4 * norm_and_scale + 8
    assert sizes == {"float32": 4 * other + kept, "float16": 2 * other + kept, "int8": other + 2 * 7 + kept}  # a scale of 2 bytes per row


class Recurrent(nn.Sequential):
    """``(n, 5)`` indices → ``(n, 5, 8)``: three quarters and more of its values are in matrices that stay dense."""

    def __init__(self):
        super().__init__(nn.Embedding(40, 8), nn.LSTM(8, 8, batch_first=True))
        self.gate, self.last = nn.Parameter(torch.randn(8, 1)), nn.Linear(8, 8)

    def forward(self, x):
        return self.last(self[1](self[0](x))[0]) * self.gate.T


def test_int8_takes_less_than_half_of_the_bytes_where_most_of_a_model_stays_dense(tmp_path):
    x, model, plan = torch.randint(40, (8, 5)), Recurrent().eval(), Plan()
    layers = inventory(model, x).layers
    assert [layer.name for layer in layers] == ["last"]
    costs, storage = cost_model(model, layers, x, "int8"), Storage(layers, "int8")
    whole = copy.deepcopy(model)
    storage.round_dense(whole)
    artifact.save(whole, plan, tmp_path / "model", {}, storage)
    assert (tmp_path / "model" / artifact.WEIGHTS).stat().st_size == costs(plan).weight_bytes
    assert costs.fixed.weight_bytes < 0.5 * costs.dense.weight_bytes  # header, biases and the 32-bit gate among them
    table, own = whole[0].weight.detach(), model[0].weight.detach()
    assert not torch.equal(table, own)
    torch.testing.assert_close(table, own, rtol=0, atol=float(own.abs().max()) / 250)  # half a step of 1/127, and of the scale
    assert torch.equal(whole.gate, model.gate)  # a scale for each value would make it larger
    again = artifact.load(tmp_path / "model", Recurrent())
    assert torch.equal(again(x), whole(x))


def test_rounding_as_it_is_does_nothing(tiny_model, layers, white_fits):
    plan, before = Plan({"head": LayerPlan(density=0.5)}), copy.deepcopy(tiny_model.state_dict())
    fits = white_fits(tiny_model, layers, plan)
    assert Storage(layers).rounded(fits)["head"] is fits["head"]
    Storage(layers).round_dense(tiny_model)
    assert all(torch.equal(v, before[k]) for k, v in tiny_model.state_dict().items())


def test_a_layer_is_packed_as_scored_or_as_fitted(tiny_model, layers, white_fits):
    plan, storage = Plan({"head": LayerPlan("svd", (2,), 0.2)}), Storage(layers, "int8")
    fits = white_fits(tiny_model, layers, plan)
    fitted, scored = (storage.pack(compress(tiny_model, layers, plan, f)) for f in (fits, storage.rounded(fits)))
    assert all(torch.equal(fitted[name], scored[name]) for name in fitted)


def test_what_float16_cannot_hold_names_its_layer(tiny_model, layers):
    with torch.no_grad():
        tiny_model.head.weight[0, 0] = 1e5
    with pytest.raises(ScoreError, match="^head: every weight must fit into float16"):
        Storage(layers, "float16").round_dense(tiny_model)


def test_int8_is_refused_for_a_model_of_16_bits(layers):
    narrow = tuple(replace(layer, itemsize=2) for layer in layers)
    with pytest.raises(ConfigError, match=r"^weights\.values: int8 needs a model of 32-bit weights; got 16 bits in stem"):
        Storage(narrow, "int8")


def test_a_layer_with_more_than_weight_and_bias_is_refused():
    class Beside(nn.Linear):
        def __init__(self):
            super().__init__(4, 4)
            self.register_buffer("calls", torch.zeros(1))

    found = inventory(nn.Sequential(Beside(), nn.Linear(4, 4)), torch.randn(2, 4))
    assert found.refused == {"0": "it has calls beside its weight and bias"}
