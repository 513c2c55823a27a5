import pytest
import torch
from torch import nn

from lrsearch.compress.inventory import inventory
from lrsearch.latency.micro_models import alone, architecture, calls, jobs, shape_of, signature, with_bias
from lrsearch.spec.plan import LayerPlan
from lrsearch.task.forward import batches_of


class Twice(nn.Module):
    """(n, 3, 8, 8) → (n, 4, 8, 8); two equal layers, one of them called at two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, bias=False)

    def forward(self, x):
        x = self.a(self.stem(x))
        return self.b(x) + self.a(x[:, :, ::2, ::2]).repeat(1, 1, 2, 2)


def test_a_signature_is_all_that_latency_depends_on():
    assert signature(nn.Linear(4, 3), (1, 7, 4)) == "linear 3x4 on 1x7x4"
    conv = nn.Conv2d(8, 16, 3, stride=(2, 1), padding=1, dilation=(1, 2), groups=4)
    expected = "conv2d 16x2x3x3 on 1x8x9x9, stride 2x1, padding 1-1-1-1 constant, dilation 1x2, groups 4"
    assert signature(conv, (1, 8, 9, 9)) == expected
    assert shape_of(expected) == (1, 8, 9, 9)


def test_equal_layers_are_measured_once_and_every_call_is_known():
    model, x = Twice(), torch.zeros(2, 3, 8, 8)
    layers = inventory(model, x).layers
    called = calls(model, [layer.name for layer in layers], x)
    assert called["a"][0] == called["b"][0]
    assert [shape_of(each) for each in called["a"]] == [(2, 4, 8, 8), (2, 4, 4, 4)]
    menus = {layer.name: [LayerPlan(), LayerPlan("svd", (2,), 0.0), LayerPlan(density=0.3), LayerPlan(density=0.6)] for layer in layers}
    found = jobs(model, layers, menus, called)
    assert len(found) == 3 * 2  # two forms, dense and low-rank, of the stem and of the others at two sizes
    assert {job.choice for job in found} == {LayerPlan(), LayerPlan("svd", (2,), 0.0)}


@pytest.mark.parametrize(
    "choice",
    [LayerPlan(), LayerPlan("svd", (2,), 0.0), LayerPlan("svd", (1,), 0.5, "column"), LayerPlan(density=0.5, pattern="row")],
    ids=str,
)
@torch.no_grad()
def test_a_layer_alone_has_a_bias_random_values_and_its_own_shapes(choice):
    base = nn.Conv2d(6, 8, 3, stride=2, bias=False)
    state = base.weight.clone()
    spec, x = inventory(nn.Sequential(base), torch.zeros(1, 6, 9, 9)).layers[0], torch.randn(1, 6, 9, 9)
    module = alone(with_bias(base), spec, choice)
    assert module(x).shape == base(x).shape
    assert module(torch.zeros_like(x)).abs().max() > 0
    assert torch.equal(base.weight, state)
    assert base.bias is None


@pytest.mark.parametrize(
    "choice",
    [
        LayerPlan("svd", (8,), 0.0), LayerPlan("spatial-svd", (20,), 0.0), LayerPlan("tucker2", (12, 16), 0.0),
        LayerPlan("cp", (30,), 0.25, "row"), LayerPlan("svd", (8,), 0.25, "column"), LayerPlan(density=0.5, pattern="row"),
    ],
    ids=str,
)  # fmt: skip
@torch.no_grad()
def test_random_layers_neither_amplify_nor_damp_so_that_no_attention_behind_them_meets_subnormal_numbers(choice):
    torch.manual_seed(0)
    base = nn.Conv2d(24, 32, 3, bias=False)
    x = torch.randn(16, 24, 12, 12)
    module = alone(base, inventory(nn.Sequential(base), x).layers[0], choice)
    assert module(x).std().item() == pytest.approx(1, abs=0.1)


def test_the_architecture_is_what_is_computed_not_the_values(tiny_model, tiny_data):
    x = tiny_data[0]
    first = architecture(tiny_model, x[:1])
    with torch.no_grad():
        tiny_model.head.weight.add_(1)
    assert architecture(tiny_model, x[1:2]) == first
    assert architecture(tiny_model, x[:2]) != first
    tiny_model.depthwise = nn.Identity()
    assert architecture(tiny_model, x[:1]) != first


def test_a_batch_repeats_the_examples_that_there_are():
    x = torch.arange(2.0)[:, None]
    assert batches_of(x, 5)[:, 0].tolist() == [0, 1, 0, 1, 0]
    assert batches_of(x, 1)[:, 0].tolist() == [0]
