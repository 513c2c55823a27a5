"""torch.export understands compressed layers."""

import warnings

import pytest
import torch
from torch import nn

from lrsearch.compress.apply import compress
from lrsearch.compress.inventory import layer_spec
from lrsearch.compress.modules import compressed_layer
from lrsearch.spec.plan import LayerPlan, Plan


def exported(model, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(model, (x,)).module()


def test_export_of_every_kind_of_layer(layer, layer_input, decomposed):
    spec = layer_spec(layer, "0")
    plan = LayerPlan(density=0.4) if spec.depthwise else LayerPlan("svd", (2,), 0.3)
    small = compressed_layer(layer, spec, plan, decomposed(spec, plan)).eval()
    torch.testing.assert_close(exported(small, layer_input)(layer_input), small(layer_input))


@pytest.mark.parametrize(
    "plan",
    [
        LayerPlan("spatial-svd", (2,), 0.0), LayerPlan("tucker2", (2, 2), 0.0), LayerPlan("cp", (3,), 0.0), LayerPlan("tt", (2, 2, 2), 0.0),
        LayerPlan(density=0.5, pattern="row"), LayerPlan(density=0.5, pattern="column"), LayerPlan(density=0.5, pattern="2:4"),
        LayerPlan(density=0.5, pattern="block2x2"),
    ],
    ids=str,
)  # fmt: skip
def test_export_of_every_format_and_pattern(plan, decomposed):
    layer, x = nn.Conv2d(4, 6, 3, padding=1), torch.randn(2, 4, 5, 6)
    spec = layer_spec(layer, "0")
    small = compressed_layer(layer, spec, plan, decomposed(spec, plan)).eval()
    torch.testing.assert_close(exported(small, x)(x), small(x))


def test_export_of_a_whole_model(tiny_model, tiny_data, layers, white_fits):
    plan = Plan({"stem": LayerPlan("svd", (3,), 0.1), "depthwise": LayerPlan(density=0.5), "head": LayerPlan("svd", (2,), 0.0)})
    small, x = compress(tiny_model, layers, plan, white_fits(tiny_model, layers, plan)), tiny_data[0][:4]
    torch.testing.assert_close(exported(small, x)(x), small(x))
