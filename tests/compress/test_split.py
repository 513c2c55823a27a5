import copy

import pytest
import torch
from torch import nn

from lrsearch.compress import artifact
from lrsearch.compress.apply import compress
from lrsearch.compress.inventory import inventory
from lrsearch.compress.split import SplitLinear, split
from lrsearch.errors import ConfigError
from lrsearch.spec.plan import LayerPlan, Plan


class Attention(nn.Module):
    """``(n, tokens, 8)`` → the same, with query, key and value from one layer."""

    def __init__(self, bias=True):
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24, bias), nn.Linear(8, 8)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.out((q @ k.mT).softmax(-1) @ v)


@pytest.fixture
def model():
    return nn.Sequential(Attention(), nn.ReLU(), Attention(bias=False), nn.Flatten(), nn.Linear(24, 2)).eval()


@pytest.fixture
def x():
    return torch.randn(4, 3, 8)


def test_the_output_stays_the_same(model, x):
    fused = split(model, ["*.qkv"])
    torch.testing.assert_close(fused(x), model(x))
    assert isinstance(fused[0].qkv, SplitLinear)
    assert isinstance(fused[2].qkv, SplitLinear)


def test_parts_are_query_key_and_value_in_this_order(model):
    parts, whole = split(model, ["0.qkv"])[0].qkv, model[0].qkv
    for i, part in enumerate((parts.q, parts.k, parts.v)):
        assert type(part) is nn.Linear
        assert (part.in_features, part.out_features) == (8, 8)
        assert torch.equal(part.weight, whole.weight[8 * i : 8 * i + 8])
        assert torch.equal(part.bias, whole.bias[8 * i : 8 * i + 8])
        assert part.weight.untyped_storage().nbytes() == 4 * part.weight.numel()
    assert split(model, ["2.qkv"])[2].qkv.k.bias is None


def test_only_what_a_pattern_matches_is_split(model, x):
    fused = split(model, ["2.*kv"])
    assert type(fused[0].qkv) is nn.Linear
    assert [spec.name for spec in inventory(fused, x).layers] == ["0.qkv", "0.out", "2.qkv.q", "2.qkv.k", "2.qkv.v", "2.out", "4"]


def test_the_model_is_not_changed_and_shares_nothing(model, x, left_alone):
    model.train()
    model[0].qkv.requires_grad_(False)
    with left_alone(model):
        fused = split(model, ["*.qkv"])
        fused(x).sum().backward()
        with torch.no_grad():
            for p in fused.parameters():
                p.add_(1)


def test_modes_precision_and_freezing_are_kept(model, x):
    model.train()
    model[0].eval().qkv.requires_grad_(False)
    fused = split(model.double(), ["*.qkv"])
    assert [m.training for m in (fused[0].qkv, fused[0].qkv.q, fused[2].qkv, fused[2].qkv.v)] == [False, False, True, True]
    assert [p.requires_grad for p in (fused[0].qkv.q.weight, fused[0].qkv.q.bias, fused[2].qkv.q.weight)] == [False, False, True]
    assert fused(x.double()).dtype == torch.float64


def test_without_patterns_the_model_itself_is_returned(model):
    assert split(model, ()) is model


def test_patterns_may_come_from_an_iterator(model):
    fused = split(model, iter(["0.qkv", "2.qkv"]))
    assert all(isinstance(fused[i].qkv, SplitLinear) for i in (0, 2))


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["*.attn"], r"^space\.split: every split pattern must match a layer; got \*\.attn"),
        (["*.qkv", "*.kv"], r"^space\.split: every split pattern must match a layer; got \*\.kv"),
        (["0.out"], r"^space\.split: 0\.out: only a Linear with rows in three equal parts .* got Linear"),
        (["0"], r"^space\.split: 0: only a Linear .* got Attention"),
    ],
    ids=str,
)
def test_what_cannot_be_split_is_a_config_error(model, patterns, message):
    with pytest.raises(ConfigError, match=message):
        split(model, patterns)


def test_layers_with_a_forward_of_their_own_are_not_split():
    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    with pytest.raises(ConfigError, match="got Scaled"):
        split(nn.Sequential(Scaled(8, 24)), ["0"])


@pytest.fixture
def saved(model, x, tmp_path, white_fits):
    """A split model under a plan for its parts, saved, and its folder."""
    fused = split(model, ["*.qkv"])
    layers = inventory(fused, x).layers
    plan = Plan({"0.qkv.q": LayerPlan("svd", (2,), 0.0), "2.qkv.v": LayerPlan(density=0.3)})
    small = compress(fused, layers, plan, white_fits(fused, layers, plan))
    artifact.save(small, plan, tmp_path / "model", {"split": ["*.qkv"]})
    return small, tmp_path / "model"


def test_a_saved_model_is_split_again_when_it_is_loaded(saved, model, x, left_alone):
    small, folder = saved
    with left_alone(model):
        again = artifact.load(folder, copy.deepcopy(model).train())
        assert torch.equal(again(x), small(x))
        assert torch.equal(artifact.load(folder, model)(x), small(x))
    assert not again.training


def test_the_merged_model_is_the_plain_one_with_other_values(model, x, saved):
    small, folder = artifact.load(saved[1], model), saved[1]
    merged = artifact.load_merged(folder, model)
    torch.testing.assert_close(merged(x), small(x))
    plain = copy.deepcopy(model)
    plain.load_state_dict(merged.state_dict())
    assert torch.equal(plain(x), merged(x))
    assert not torch.allclose(model(x), merged(x))
