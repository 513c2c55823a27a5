import pytest
import torch
from timm.layers import Conv2dSame, StdConv2d
from torch import nn
from torch.nn.utils import parametrize

from lrsearch.compress.inventory import inventory
from lrsearch.compress.prepare import prepare
from lrsearch.errors import ModelError
from lrsearch.spec.layer import WIDEST, LayerSpec


class Symmetric(nn.Module):
    def forward(self, x):
        return x.triu() + x.triu(1).T


class Zoo(nn.Module):
    """What cannot be compressed, beside one layer that can."""

    def __init__(self):
        super().__init__()
        self.std = StdConv2d(3, 8, 3, padding=1)
        self.embedding = nn.Embedding(5, 8)
        self.tied = nn.Linear(8, 5)
        self.tied.weight = self.embedding.weight
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.pairs = nn.Bilinear(8, 8, 8)
        self.parametrised = nn.Linear(8, 8)
        parametrize.register_parametrization(self.parametrised, "weight", Symmetric())
        self.spare = nn.Linear(8, 8)
        self.places = nn.Parameter(torch.randn(1, 16, 8))
        self.gain = nn.Parameter(torch.ones(1, 1, 8))
        self.patched, self.patched_conv = nn.Linear(8, 8), nn.Conv1d(8, 8, 1)
        self.patched.forward = lambda x: 2 * x
        self.patched_conv._conv_forward = lambda x, weight, bias: 2 * x
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        x = self.std(x).flatten(2).mT + self.places * self.gain
        x = self.encoder(self.attention(x, x, x)[0] + self.embedding(torch.zeros(1, 16, dtype=torch.long)))
        x = self.pairs(self.lstm(x)[0], x) + self.tied(x).sum()
        x = self.patched_conv(self.patched(self.parametrised(x)).mT)
        return self.head(x.mean(2))


@pytest.fixture(scope="module")
def found():
    return inventory(Zoo(), torch.randn(2, 3, 4, 4))


REASONS = {
    "attention": "not layers of their own",
    "attention.out_proj": "MultiheadAttention",
    "encoder.self_attn": "not layers of their own",
    "encoder.self_attn.out_proj": "MultiheadAttention",
    "encoder.linear1": "TransformerEncoderLayer",
    "encoder.linear2": "TransformerEncoderLayer",
    "std": "StdConv2d computes its weight",
    "embedding": "Embedding reads rows",
    "tied": "its weight is tied to that of embedding, an Embedding",
    "lstm": "LSTM computes with its matrices",
    "pairs": "Bilinear is not supported",
    "parametrised": "parametrised",
    "spare": "not called for any",
    "patched": "forward was replaced",
    "patched_conv": "_conv_forward was replaced",
    "places": "Zoo computes with it itself",
}


@pytest.mark.parametrize("name", REASONS)
def test_refuses_with_the_reason(found, name):
    assert REASONS[name] in found.refused[name]


def test_everything_that_owns_a_matrix_is_either_offered_or_refused(found):
    assert [spec.name for spec in found.layers] == ["head"]
    assert found.refused.keys() == REASONS.keys()


def test_shares_are_those_of_all_values_and_what_is_tied_counts_once(found):
    whole = sum(p.numel() for p in Zoo().parameters())
    assert found.shares.keys() == {"head"} | REASONS.keys()
    assert found.shares["lstm"] == 576 / whole
    assert found.shares["embedding"] == 40 / whole
    assert found.shares["tied"] == 5 / whole
    assert found.shares["parametrised"] == 72 / whole
    assert found.shares["places"] == 128 / whole
    norms_and_gain = 2 * 16 + 8
    assert sum(found.shares.values()) == pytest.approx(1 - norms_and_gain / whole)
    assert found.largest_dense(2).startswith("lstm (")
    assert "pairs (" in found.largest_dense(2)


def test_prepared_attention_leaves_nothing_refused_but_what_must_be():
    found = inventory(prepare(Zoo()), torch.randn(2, 3, 4, 4))
    offered = {f"{place}.{part}" for place in ("attention", "encoder.self_attn") for part in ("q", "k", "v", "out_proj")}
    assert {spec.name for spec in found.layers} == offered | {"encoder.linear1", "encoder.linear2", "std", "head"}
    assert not [name for name in found.refused if "attention" in name or "attn" in name or "linear" in name]


def test_lists_layers_with_shapes_groups_and_positions(tiny_model):
    tiny_model.train()
    before = {k: v.clone() for k, v in tiny_model.state_dict().items()}
    found = inventory(tiny_model, torch.randn(3, 3, 12, 12))
    assert found.refused == {}
    assert found.layers == (
        LayerSpec("stem", "conv2d", (16, 3, 3, 3), 1, 36, 144, 72),
        LayerSpec("depthwise", "conv2d", (16, 1, 3, 3), 16, 36, 36, 36),
        LayerSpec("grouped", "conv2d", (16, 4, 3, 3), 4, 36, 36, 36),
        LayerSpec("pointwise", "conv2d", (24, 16, 1, 1), 1, 36, 36, 36),
        LayerSpec("head", "linear", (4, 24), 1, 1, 1, 1),
    )
    assert all(m.training for m in tiny_model.modules())
    assert all(torch.equal(v, before[k]) for k, v in tiny_model.state_dict().items())
    assert not any(m._forward_hooks for m in tiny_model.modules())


def test_positions_add_up_over_calls_and_timm_same_convolutions_are_offered():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = Conv2dSame(3, 3, 3, stride=2)

        def forward(self, x):
            return self.conv(self.conv(x))

    found = inventory(Twice(), torch.randn(2, 3, 5, 8)).layers[0]
    assert found.positions == 3 * 4 + 2 * 2
    assert found.input_positions == 5 * 8 + 3 * 4
    assert found.half_positions == 3 * 8 + 2 * 4


def test_convolutions_in_one_dimension_and_linear_layers_over_tokens():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv1d(3, 6, 5, stride=2, groups=3), nn.Linear(6, 2)

        def forward(self, x):
            return self.head(self.conv(x).mT)

    assert inventory(Tokens(), torch.randn(2, 3, 15)).layers == (
        LayerSpec("conv", "conv1d", (6, 1, 5), 3, 6, 15, 15),
        LayerSpec("head", "linear", (2, 6), 1, 6, 6, 6),
    )


def test_layers_too_large_both_ways_and_without_numbers_are_refused():
    with torch.device("meta"):
        huge = nn.Linear(WIDEST + 1, WIDEST + 1)
    huge.weight = nn.Parameter(torch.zeros(1, 1).expand(WIDEST + 1, WIDEST + 1), requires_grad=False)
    huge.register_parameter("bias", None)
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, WIDEST + 1), huge, nn.Linear(WIDEST + 1, 2))
    nn.init.constant_(model[0].weight, float("inf"))
    found = inventory(model, torch.randn(1, 2))
    assert [spec.name for spec in found.layers] == ["1", "3"]
    assert "finite" in found.refused["0"]
    assert f"{WIDEST + 1} rows and {WIDEST + 1} columns" in found.refused["2"]
    assert found.layers[1].gram_shape == (29, (WIDEST + 1) // 29, (WIDEST + 1) // 29)


class Experts(nn.Module):
    """Each example takes the expert that its first value names."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(torch.stack([self.experts[int(row[0])](row) for row in x]))


def routed(*ways):
    x = torch.randn(len(ways), 4)
    x[:, 0] = torch.tensor(ways, dtype=torch.float32)
    return x


def test_experts_count_that_any_calibration_batch_reaches():
    found = inventory(Experts(), routed(0, 1), iter([routed(1, 1), routed(2)]))
    assert {spec.name: spec.positions for spec in found.layers} == {"experts.0": 1, "experts.1": 0, "experts.2": 0, "head": 1}
    assert "not called for any" in found.refused["experts.3"]


class Tied(nn.Module):
    def __init__(self, how="parameter"):
        super().__init__()
        self.a, self.b, self.c, self.head = (nn.Linear(8, 8) for _ in range(4))
        if how == "parameter":
            self.c.weight = self.a.weight
        else:
            self.c.weight.data = self.a.weight.data

    def forward(self, x):
        return self.head(self.c(self.b(self.a(x).relu()).relu()).relu())


@pytest.mark.parametrize("how", ["parameter", "data"])
def test_tied_layers_are_one_decision_with_the_positions_of_both(how):
    model = Tied(how)
    found = inventory(prepare(model), torch.randn(2, 5, 8))
    assert {spec.name: (spec.tied, spec.positions) for spec in found.layers} == {"a": (("c",), 10), "b": ((), 5), "head": ((), 5)}
    assert found.refused == {}
    assert model.c.weight.data_ptr() == model.a.weight.data_ptr()


def test_a_layer_called_on_what_has_no_batch_is_not_said_to_be_uncalled():
    class Query(nn.Module):
        def __init__(self):
            super().__init__()
            self.query = nn.Parameter(torch.randn(1, 8))
            self.gate, self.head = nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.head(x * self.gate(self.query))

    assert "not called" not in inventory(Query(), torch.randn(4, 8)).refused.get("gate", "")


def test_a_model_that_refuses_the_sample_is_a_model_error(tiny_model):
    with pytest.raises(ModelError, match="must accept a batch"):
        inventory(tiny_model, torch.randn(2, 5, 12, 12))
    assert not any(m._forward_hooks for m in tiny_model.modules())


def test_a_model_without_compressible_layers_is_a_model_error():
    with pytest.raises(ModelError, match="0: LSTM computes with its matrices"):
        inventory(nn.Sequential(nn.LSTM(3, 3)), torch.randn(2, 3, 3))
