"""BatchNorm is folded exactly where nothing else reads the layer's output."""

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrizations import weight_norm

from lrsearch.deploy.fold_batchnorm import fold_batchnorm


def settled(model: nn.Module) -> nn.Module:
    """Random statistics and affine parameters in every BatchNorm."""
    for norm in (m for m in model.modules() if isinstance(m, _BatchNorm)):
        if norm.running_mean is not None:
            nn.init.normal_(norm.running_mean, std=0.3)
            nn.init.uniform_(norm.running_var, 0.5, 2)
        if norm.affine:
            nn.init.normal_(norm.bias, std=0.3)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
    return model.eval()


class Net(nn.Module):
    """(n, 4, 6, 6) → (n, 4, 6, 6), through one of several ways to follow a convolution by a BatchNorm."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.conv, self.norm = way, nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.other, self.identity = nn.BatchNorm2d(4), nn.Identity()
        if way == "parametrised":
            self.conv = weight_norm(self.conv)
        if way == "no statistics":
            self.norm = nn.BatchNorm2d(4, track_running_stats=False)
        if way == "no affine":
            self.norm = nn.BatchNorm2d(4, affine=False)
        if way == "no bias":
            self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        if way == "act":
            self.norm = BatchNormAct2d(4, act_layer=nn.SiLU)

    def forward(self, x):
        y = self.conv(x)
        match self.way:
            case "residual":
                return self.norm(y) + y
            case "view":
                return self.norm(y) + y.flatten(1).view_as(y)
            case "output":
                return torch.stack([self.norm(y)]), y
            case "twice":
                return self.norm(self.conv(self.norm(y)))
            case "two norms":
                return self.norm(y) + self.other(y)
            case "between":
                return self.norm(F.relu(y))
            case "in place":
                y += x
                return self.norm(y)
            case "identity":
                return self.norm(self.identity(y))
        return self.norm(y)


@pytest.mark.parametrize("way", ["plain", "identity", "no affine", "no bias", "act"])
@torch.no_grad()
def test_a_batchnorm_that_alone_reads_a_layer_is_folded(way):
    model, x = settled(Net(way)), torch.randn(2, 4, 6, 6)
    expected = model(x)
    assert fold_batchnorm(model, x) == ["norm"]
    assert not isinstance(model.norm, _BatchNorm)
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize(
    "way", ["residual", "view", "output", "twice", "two norms", "between", "in place", "parametrised", "no statistics"],
)
@torch.no_grad()
def test_any_other_batchnorm_stays(way):
    model, x = settled(Net(way)), torch.randn(2, 4, 6, 6)
    expected = model(x)
    assert fold_batchnorm(model, x) == []
    torch.testing.assert_close(model(x), expected)


@torch.no_grad()
def test_a_norm_over_the_tokens_of_a_linear_layer_stays():
    model, x = settled(nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7))), torch.randn(3, 7, 5)
    assert fold_batchnorm(model, x) == []
    assert fold_batchnorm(model, x[:, 0]) == ["1"]


@torch.no_grad()
def test_a_tied_weight_is_scaled_in_one_place_alone():
    model, x = settled(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))), torch.randn(2, 4, 3, 3)
    model[2].weight = model[0].weight
    expected = model(x)
    assert fold_batchnorm(model, x) == ["1"]
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize(
    ("name", "left"),
    [("mobilenetv3_small_050", 0), ("tf_efficientnet_lite0", 0), ("resnet10t", 0), ("vit_tiny_patch16_224", 0), ("convnext_atto", 0)],
)
@torch.no_grad()
def test_families_of_timm(name, left):
    model = settled(timm.create_model(name, num_classes=5))
    x = torch.randn(1, 3, *(224, 224) if "vit" in name else (64, 64))
    expected, norms = model(x), sum(isinstance(m, _BatchNorm) for m in model.modules())
    assert len(fold_batchnorm(model, x)) == norms - left
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
