"""Columns that a layer drops take with them what alone feeds them."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame, Mlp
from torch import nn

from lrsearch.compress.apply import compress
from lrsearch.compress.inventory import inventory
from lrsearch.compress.modules import CompressedLayer
from lrsearch.deploy.channel_flow import LANES, feeds, topped
from lrsearch.deploy.deployed import deployed
from lrsearch.latency.micro_models import randomised
from lrsearch.spec.plan import LayerPlan, Plan

COLUMNS = LayerPlan(density=0.3, pattern="column")


class Inverted(nn.Module):
    """(n, 8, 9, 9) → (n, 8, 5, 5): expansion, depthwise, projection, as in an inverted residual."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.norm, self.act = nn.Conv2d(8, 64, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU6(inplace=True)
        self.depthwise = Conv2dSame(64, 64, 3, stride=2, groups=64)
        self.project = nn.Conv2d(64, 8, 1)

    def forward(self, x):
        return self.project(self.depthwise(self.act(self.norm(self.expand(x)))))


class Unscaled(nn.Module):
    """A norm without weights, which a sample of zeros cannot tell from what treats channels by themselves."""

    def forward(self, x):
        return x - x.mean(-1, keepdim=True)


class Halves(nn.Module):
    """Takes 48 channels and no others."""

    def forward(self, x):
        return x.view(*x.shape[:-1], 2, 24).flip(-2).reshape(x.shape)


class Plainly(nn.Module):
    """A layer after another, with something between them."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.first, self.between, self.second = nn.Linear(8, 48), between, nn.Linear(48, 8)

    def forward(self, x):
        return self.second(self.between(self.first(x)))


class Functional(nn.Module):
    """As :class:`Plainly`, with a function between, and an image instead of a list of features where ``kernel``."""

    def __init__(self, function, kernel=0) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(a, b, kernel) if kernel else nn.Linear(a, b) for a, b in ((8, 48), (48, 8)))
        self.function, self.gamma = function, nn.Parameter(torch.rand(48) + 0.5)

    def forward(self, x):
        y = self.first(x)
        return self.second(self.function(y, self.gamma))


class ReadTwice(Plainly):
    def forward(self, x):
        y = self.first(x)
        return self.second(self.between(y)) + y.mean()


class ReadByTwo(Plainly):
    def __init__(self, between: nn.Module) -> None:
        super().__init__(between)
        self.third = nn.Linear(48, 8)

    def forward(self, x):
        y = self.between(self.first(x))
        return self.second(y) + self.third(y)


class Both(nn.Module):
    def forward(self, pair, beside=None):
        x, y = pair if beside is None else (pair, beside)
        return x + y.mean()


class ReadInList(Plainly):
    def __init__(self, between: nn.Module) -> None:
        super().__init__(between)
        self.both = Both()

    def forward(self, x):
        y = self.between(self.first(x))
        return self.both([self.second(y), y])


class ReadByName(ReadInList):
    def forward(self, x):
        y = self.between(self.first(x))
        return self.both(self.second(y), beside=y)


class ReadByTwoAndAFunction(ReadByTwo):
    def forward(self, x):
        y = self.first(x)
        return self.second(F.relu(y)) + self.third(y)


class CalledTwice(Plainly):
    def forward(self, x):
        return self.second(self.between(self.first(x))) + self.second(self.between(self.first(x + 1)))


def compressed(model: nn.Module, x: torch.Tensor, plans: dict[str, LayerPlan]) -> nn.Module:
    layers = [layer for layer in inventory(model, x).layers if layer.name in plans]
    small = compress(model, layers, Plan(plans)).eval()
    for layer in small.modules():
        if isinstance(layer, CompressedLayer):
            randomised(layer)
    return small


def settled(model: nn.Module) -> nn.Module:
    """With BatchNorms that do something."""
    torch.manual_seed(0)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.normal_(norm.bias)
    return model.eval()


@torch.no_grad()
def test_dropped_columns_leave_expansion_and_depthwise_convolution_with_as_many_channels_and_the_same_outputs():
    model, x = settled(Inverted()), torch.randn(2, 8, 9, 9)
    assert feeds(deployed(model, x), x)["project"].producer == "expand"
    small = compressed(model, x, {"project": COLUMNS})
    fast = deployed(small, x)
    torch.testing.assert_close(fast(x), small(x), rtol=1e-4, atol=1e-5)
    assert (fast.expand.out_channels, fast.depthwise.groups, fast.project.in_channels) == (20, 20, 20)  # 19, topped to whole lanes


@torch.no_grad()
def test_merged_layers_and_models_without_a_sample_keep_their_channels():
    model, x = settled(Inverted()), torch.randn(2, 8, 9, 9)
    small = compressed(model, x, {"project": COLUMNS})
    for fast in (deployed(small, x, ["project"]), deployed(small)):
        torch.testing.assert_close(fast(x), small(x), rtol=1e-4, atol=1e-5)
        assert fast.expand.out_channels == 64


@pytest.mark.parametrize(
    "expand", [LayerPlan("svd", (4,), 0.0), LayerPlan("svd", (2,), 0.5, "column"), LayerPlan(density=0.5), COLUMNS], ids=str,
)  # fmt: skip
@torch.no_grad()
def test_a_producer_may_be_compressed_itself(expand):
    model, x = settled(Inverted()), torch.randn(2, 8, 9, 9)
    small = compressed(model, x, {"project": COLUMNS, "expand": expand})
    fast = deployed(small, x)
    torch.testing.assert_close(fast(x), small(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("between", "expected"),
    [
        (nn.GELU(), True), (nn.ReLU(inplace=True), True), (nn.Identity(), True), (nn.Dropout(0.5), True), (nn.PReLU(), False),
        (nn.Softmax(-1), False), (nn.LayerNorm(48), False), (Unscaled(), False), (Halves(), False),
        (nn.Sequential(nn.SiLU(), nn.Dropout(0.1)), True),
    ],
    ids=str,
)  # fmt: skip
@torch.no_grad()
def test_only_what_treats_channels_by_themselves_may_be_between(between, expected):
    model, x = Plainly(between).eval(), torch.randn(3, 5, 8)
    assert ("second" in feeds(model, x)) == expected
    model.first.bias.zero_()
    assert ("second" in feeds(model, torch.zeros_like(x))) == expected
    small = compressed(model, x, {"second": COLUMNS})
    fast = deployed(small, x)
    torch.testing.assert_close(fast(x), small(x), rtol=1e-4, atol=1e-5)
    assert (fast.first.out_features == 16) == expected


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda y, g: F.relu(y), True), (lambda y, g: F.relu(y, inplace=True), True), (lambda y, g: F.gelu(y), True),
        (lambda y, g: F.hardswish(y), True), (lambda y, g: y * torch.tensor(0.5), True),
        (lambda y, g: F.dropout(F.relu6(y) * 0.5, training=False), True), (lambda y, g: y * g, False),
        (lambda y, g: y * y.sigmoid(), False), (lambda y, g: F.relu(y) + y, False), (lambda y, g: F.relu(y) + y.mean(), False),
        (lambda y, g: y.softmax(-1), False), (lambda y, g: y.flip(-1), False), (lambda y, g: y.cumsum(-1), False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kernel", [0, 2])
@torch.no_grad()
def test_functions_of_each_value_may_be_between(function, expected, kernel):
    torch.manual_seed(0)
    model, x = Functional(function, kernel).eval(), torch.randn(3, 8, 5, 5) if kernel else torch.randn(3, 5, 8)
    if kernel and not expected:
        model.gamma = nn.Parameter(model.gamma[:, None, None])
    assert ("second" in feeds(model, x)) == expected
    small = compressed(model, x, {"second": COLUMNS})
    fast = deployed(small, x)
    torch.testing.assert_close(fast(x), small(x), rtol=1e-4, atol=1e-5)
    assert (len(fast.first.weight) == 16) == expected


@pytest.mark.parametrize("kind", [ReadTwice, ReadByTwo, ReadByTwoAndAFunction, ReadInList, ReadByName, CalledTwice])
@torch.no_grad()
def test_what_is_read_or_called_twice_feeds_nothing_alone(kind):
    model, x = kind(nn.ReLU()).eval(), torch.randn(3, 8)
    assert not feeds(model, x)
    small = compressed(model, x, {"second": COLUMNS})
    torch.testing.assert_close(deployed(small, x)(x), small(x), rtol=1e-4, atol=1e-5)


class Asking(nn.Module):
    """Pads as its convolution's attributes say, as DaViT does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 12, 2, stride=2)

    def forward(self, x):
        (h, w), (_, across) = self.conv.kernel_size, self.conv.stride
        return self.conv(F.pad(x, (0, x.shape[-1] % across, 0, h - w)))


@pytest.mark.parametrize("plan", [COLUMNS, LayerPlan("svd", (3,), 0.0), LayerPlan("svd", (3,), 0.3, "row")], ids=str)
@torch.no_grad()
def test_models_that_ask_their_layers_for_attributes_are_deployed(plan):
    model, x = Asking().eval(), torch.randn(2, 8, 6, 5)
    small = compressed(model, x, {"conv": plan})
    torch.testing.assert_close(deployed(small, x)(x), small(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_an_mlp_and_a_stack_of_layers_that_feed_each_other():
    model, x = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)).eval(), torch.randn(3, 8)
    small = compressed(model, x, {"2": COLUMNS, "4": COLUMNS})
    fast = deployed(small, x)
    torch.testing.assert_close(fast(x), small(x), rtol=1e-4, atol=1e-5)
    assert [m.weight.shape for m in fast if isinstance(m, nn.Linear)] == [(20, 8), (20, 20), (4, 20)]
    assert feeds(Mlp(8, 32).eval(), x)["fc2"].producer == "fc1"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["efficientnet_lite0", "mobilenetv3_small_050", "vit_tiny_patch16_224", "resnet18", "convnext_atto"])
@torch.no_grad()
def test_real_networks_keep_their_outputs(name):
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    x = torch.randn(1, 3, *([224] * 2 if "vit" in name else [64] * 2))
    found = feeds(deployed(model, x), x)
    small = compressed(model, x, {n: COLUMNS for n in [layer.name for layer in inventory(model, x).layers] if n in found})
    fast = deployed(copy.deepcopy(small), x)
    torch.testing.assert_close(fast(x), small(x), rtol=1e-3, atol=1e-4)
    smaller = sum(p.numel() for p in fast.parameters())
    assert bool(found) == (smaller < sum(p.numel() for p in model.parameters()))
    assert (name, len(found)) in {
        ("efficientnet_lite0", 18), ("mobilenetv3_small_050", 13), ("vit_tiny_patch16_224", 12), ("resnet18", 8), ("convnext_atto", 12),
    }  # fmt: skip


def test_topped_indices_are_ascending_and_whole_lanes_where_there_are_enough_channels():
    assert topped(torch.tensor([5, 30]), 40).tolist() == [0, 1, 5, 30]
    assert len(topped(torch.arange(17), 40)) == 5 * LANES
    assert topped(torch.arange(2, 15), 15).tolist() == list(range(15))


class Shaped(nn.Module):
    """(n, 8, 5, 5) → (n, 48, 5, 5): reads the shape of what its first layer makes, or checks it, after the second has read the values."""

    def __init__(self, checks: bool) -> None:
        super().__init__()
        self.first, self.second, self.checks = nn.Conv2d(8, 48, 1), nn.Conv2d(48, 48, 1), checks

    def forward(self, x):
        hidden = self.first(x).relu()
        y = self.second(hidden)
        if self.checks:
            assert hidden.shape[1] == 48
            return y
        return y.flatten(2).transpose(1, 2).transpose(1, 2).reshape(hidden.shape)


@pytest.mark.parametrize("checks", [False, True])
@torch.no_grad()
def test_what_the_models_own_code_asks_the_shape_of_stays_whole(checks):
    torch.manual_seed(0)
    model, x = Shaped(checks).eval(), torch.randn(3, 8, 5, 5)
    assert not feeds(model, x)
    small = compressed(model, x, {"second": COLUMNS})
    torch.testing.assert_close(deployed(small, x)(x), small(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_of_several_feeds_those_stay_that_hold():
    torch.manual_seed(0)
    model, x = nn.Sequential(Inverted(), Shaped(True)).eval(), torch.randn(3, 8, 9, 9)
    assert feeds(model, x).keys() == {"1.first"}
