import pytest
import torch
from timm.layers import Conv2dSame, StdConv2d
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from lrsearch.compress.inventory import MOST_COLUMNS, inventory
from lrsearch.errors import ModelError
from lrsearch.spec.layer import LayerSpec


class Zoo(nn.Module):
    """What cannot be compressed, beside one layer that can."""

    def __init__(self):
        super().__init__()
        self.std = StdConv2d(3, 8, 3, padding=1)
        self.transposed = nn.ConvTranspose2d(8, 8, 2)
        self.embedding = nn.Embedding(5, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.tied_a = nn.Linear(8, 8)
        self.tied_b = nn.Linear(8, 8)
        self.tied_b.weight = self.tied_a.weight
        self.normed = weight_norm(nn.Linear(8, 8))
        self.spare = nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        x = self.transposed(self.std(x)).flatten(2).mT
        x = self.attention(x, x, x)[0]
        return self.head(self.normed(self.tied_b(self.tied_a(x))).mean(1))


@pytest.fixture
def found():
    return inventory(Zoo(), torch.randn(2, 3, 4, 4))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("tied_a", "tied"),
        ("tied_b", "tied"),
        ("normed", "parametrised"),
        ("attention.out_proj", "MultiheadAttention"),
        ("std", "StdConv2d computes its weight"),
        ("transposed", "ConvTranspose2d is not supported"),
        ("embedding", "Embedding is not supported"),
        ("spare", "not called"),
    ],
)
def test_refuses_with_the_reason(found, name, reason):
    assert reason in found.refused[name]


def test_everything_is_either_offered_or_refused(found):
    assert [spec.name for spec in found.layers] == ["head"]
    assert len(found.refused) == 8


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


def test_layers_too_wide_for_a_gram_matrix_and_without_numbers_are_refused():
    model = nn.Sequential(nn.Linear(MOST_COLUMNS + 1, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    nn.init.constant_(model[1].weight, float("inf"))
    found = inventory(model, torch.randn(1, MOST_COLUMNS + 1))
    assert [spec.name for spec in found.layers] == ["2"]
    assert f"{MOST_COLUMNS + 1} columns" in found.refused["0"]
    assert "finite" in found.refused["1"]


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
    with pytest.raises(ModelError, match="0: ConvTranspose2d is not supported"):
        inventory(nn.Sequential(nn.ConvTranspose2d(3, 3, 2)), torch.randn(2, 3, 4, 4))
