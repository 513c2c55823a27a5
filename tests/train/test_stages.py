"""Stages are found in any network, and features are compared stage by stage."""

import pytest
import timm
import torch
from torch import nn

from lrsearch.errors import ConfigError
from lrsearch.train.stages import Features, feature_loss, find_stages, named_stages


class Block(nn.Module):
    def __init__(self, width, inner=4):
        super().__init__()
        self.one, self.two = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x):
        return x + self.two(self.one(x).relu())


class Listed(nn.Module):
    """Blocks in a list, which itself does not run; each block returns a tuple, and the model a dict."""

    def __init__(self):
        super().__init__()
        self.body = nn.ModuleList(Block(6) for _ in range(3))
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        for block in self.body:
            x = block(x)
        return {"logits": self.head(x), "hidden": x}


class Pair(nn.Module):
    """Two networks side by side, of several inputs."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Sequential(Block(4), Block(4)), nn.Sequential(Block(4), Block(4))

    def forward(self, a, b):
        return self.left(a), self.right(b)


def images(size=32):
    return torch.randn(2, 3, size, size)


CASES = {
    "resnet": (lambda: timm.create_model("resnet10t"), images, ["conv1", *(f"layer{i}" for i in (1, 2, 3, 4))]),
    "vit": (lambda: timm.create_model("test_vit", img_size=32), images, None),
    "mobilenetv3": (lambda: timm.create_model("mobilenetv3_small_050"), images, [f"blocks.{i}" for i in range(5)]),
    "list": (Listed, lambda: torch.randn(2, 6), ["body.0", "body.1", "body.2"]),
    "pair": (Pair, lambda: (torch.randn(2, 4), torch.randn(2, 4)), ["left.0", "left.1", "right.0", "right.1"]),
    "chain": (
        lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)), lambda: torch.randn(2, 4),
        ["0", "2"],
    ),
    "one layer": (lambda: nn.Sequential(nn.Linear(4, 3)), lambda: torch.randn(2, 4), []),
}


@pytest.mark.parametrize("case", CASES)
def test_stages_are_the_outermost_parts_of_several_layers(case):
    build, inputs, expected = CASES[case]
    model = build().train()
    found = find_stages(model, inputs())
    assert model.training
    if expected is None:
        assert len(found) >= 3
        assert all(name.startswith("blocks.") for name in found)
    else:
        assert list(found) == expected
    assert not any(m._forward_hooks for m in model.modules())


def test_stages_may_be_named():
    model = Listed()
    assert named_stages(model, ["body.?", "head"]) == ("body.0", "body.1", "body.2", "head")
    with pytest.raises(ConfigError, match=r"^stages: every stage must match a module; got tail"):
        named_stages(model, ["tail*"])


def test_the_loss_is_the_squared_error_in_units_of_the_variance_mean_over_stages():
    wanted = {"a": [torch.tensor([0.0, 2.0])], "b": [torch.tensor([0.0, 20.0]), torch.ones(3)]}
    found = {"a": [torch.tensor([1.0, 2.0])], "b": [torch.tensor([0.0, 10.0]), torch.zeros(3)]}
    assert float(feature_loss(found, wanted)) == pytest.approx((0.5 / 1 + 50 / 100 + 0) / 3)
    assert float(feature_loss(wanted, wanted)) == 0


def test_features_are_recorded_call_by_call_and_taken_once():
    model = Listed()
    with Features(model, ["body.1"]) as seen:
        model(torch.ones(1, 6))
        model(torch.zeros(1, 6))
        assert [len(t) for t in seen.taken()["body.1"]] == [1, 1]
        assert seen.taken() == {}


def test_what_records_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"^loss: stages must return float tensors; got a"):
        feature_loss({}, {"a": []})
