"""Transposed and 3-D convolutions, beside what holds for every kind of layer in the conformance tests."""

import pytest
import torch
from torch import nn

from lrsearch.compress.apply import compress
from lrsearch.compress.faithful import plain_layers
from lrsearch.compress.inventory import inventory, layer_spec
from lrsearch.compress.matricize import to_matrix, to_weight
from lrsearch.measure.count import cost_model, dense_macs
from lrsearch.spec.plan import LayerPlan, Plan

CONVS = {
    "1d": lambda: nn.ConvTranspose1d(6, 4, 3, stride=2, groups=2), "2d": lambda: nn.ConvTranspose2d(6, 4, (3, 2)),
    "3d transposed": lambda: nn.ConvTranspose3d(6, 4, 2, stride=2), "3d": lambda: nn.Conv3d(6, 4, (3, 2, 1), groups=2),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVS)
def test_matrices_become_the_weight_again(name):
    conv = CONVS[name]()
    spec = layer_spec(conv, "0")
    matrix = to_matrix(conv.weight, spec)
    assert matrix.shape == spec.matrix_shape
    assert torch.equal(to_weight(matrix, spec), conv.weight)


class Decoder(nn.Module):
    """As U-Nets do, asks for the size that it wants."""

    def __init__(self):
        super().__init__()
        self.down, self.up, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.ConvTranspose2d(8, 4, 3, 2, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.head(self.up(self.down(x).relu(), output_size=x.shape[-2:]))


@pytest.mark.parametrize("size", [(8, 7), (7, 8)])
def test_the_output_size_that_is_asked_for_is_given(size, white_fits):
    torch.manual_seed(0)
    model, x = Decoder().eval(), torch.randn(2, 3, *size)
    found = inventory(model, x)
    assert plain_layers(model, found, x) == found
    plan = Plan({"up": LayerPlan("svd", (2,), 0.2)})
    small = compress(model, found.layers, plan, white_fits(model, found.layers, plan)).eval()
    assert small(x).shape == model(x).shape
    cost = cost_model(model, found.layers, x)(plan)
    assert (cost.params, cost.macs) == (sum(p.numel() for p in small.parameters()), dense_macs(small, x))


def test_a_video_network_and_an_autoencoder_have_nothing_left_dense():
    video = nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 6, 3, stride=2), nn.Flatten(), nn.LazyLinear(3))
    x = torch.randn(2, 2, 5, 6, 7)
    video(x)
    found = plain_layers(video, inventory(video, x), x)
    assert [layer.kind for layer in found.layers] == ["conv3d", "conv3d", "linear"]
    assert found.layers[0].positions == 5 * 6 * 7
    coder = nn.Sequential(nn.Conv1d(2, 6, 4, 2), nn.ReLU(), nn.ConvTranspose1d(6, 2, 4, 2))
    layers = inventory(coder, torch.randn(2, 2, 16)).layers
    assert [layer.positions for layer in layers] == [7, 7]
