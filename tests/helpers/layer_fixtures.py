"""One layer of every kind, with an input that is as wide as it is not high, and the plans it can have."""

import pytest
import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn

from lrsearch.compress.fit import Decomposition
from lrsearch.compress.inventory import layer_spec
from lrsearch.compress.sparsify import select
from lrsearch.spec.formats import FORMATS
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.pattern import pattern
from lrsearch.spec.plan import LayerPlan

LAYERS = {
    "linear": lambda: nn.Linear(7, 5),
    "linear no bias": lambda: nn.Linear(7, 10, bias=False),
    "conv 1x1": lambda: nn.Conv2d(6, 8, 1),
    "conv 1x1 strided": lambda: nn.Conv2d(6, 4, 1, stride=(2, 3), padding=1),
    "conv strided": lambda: nn.Conv2d(6, 8, (3, 2), stride=(2, 1), padding=(1, 0)),
    "conv dilated": lambda: nn.Conv2d(6, 8, 3, padding=2, dilation=2, bias=False),
    "conv same": lambda: nn.Conv2d(6, 8, (2, 3), padding="same"),
    "conv reflect": lambda: nn.Conv2d(6, 8, 3, padding=(2, 1), padding_mode="reflect"),
    "conv timm same": lambda: Conv2dSame(6, 8, 3, stride=2),
    "depthwise": lambda: nn.Conv2d(6, 12, 3, padding=1, stride=2, groups=6),
    "grouped": lambda: nn.Conv2d(6, 4, (1, 3), groups=2, bias=False),
    "grouped 3x3": lambda: nn.Conv2d(6, 8, 3, groups=2, padding=1),
    "conv1d": lambda: nn.Conv1d(6, 8, 3, stride=2, padding=1),
    "conv1d grouped": lambda: nn.Conv1d(6, 4, 2, dilation=3, groups=2, padding="same", padding_mode="circular"),
}


EVEN_SAME = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


@pytest.fixture(params=[pytest.param(name, marks=EVEN_SAME) for name in LAYERS])
def layer(request) -> nn.Linear | nn.Conv1d | nn.Conv2d:
    torch.manual_seed(0)
    return LAYERS[request.param]().eval()


@pytest.fixture
def layer_input(layer) -> Tensor:
    shape = (4, 3, 7) if isinstance(layer, nn.Linear) else (4, 6, 11) if isinstance(layer, nn.Conv1d) else (4, 6, 8, 11)
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=generator).relu() + torch.rand(shape, generator=generator)


PLANS = [
    LayerPlan(density=0.4), LayerPlan("svd", (2,), 0.0), LayerPlan("svd", (2,), 0.3), LayerPlan("spatial-svd", (2,), 0.2),
    LayerPlan("tucker2", (2, 3), 0.0), LayerPlan("tucker2", (1, 1), 0.1), LayerPlan("cp", (3,), 0.1), LayerPlan("tt", (2, 2), 0.1),
    LayerPlan("tt", (2, 3, 2), 0.0), LayerPlan(density=0.5, pattern="row"), LayerPlan("svd", (1,), 0.4, "row"),
    LayerPlan(density=0.5, pattern="column"), LayerPlan("svd", (1,), 0.4, "column"), LayerPlan(density=1 / 3, pattern="1:3"),
    LayerPlan(density=3 / 7, pattern="3:7"), LayerPlan("svd", (2,), 0.5, "block2x3"), LayerPlan(density=0.5, pattern="block5x1"),
]  # fmt: skip


@pytest.fixture
def plans(layer) -> list[LayerPlan]:
    """Every format and pattern that the layer can have."""
    spec = layer_spec(layer, "0")
    return [plan for plan in PLANS if not plan.refusal(spec)]


@pytest.fixture
def decomposed():
    """Any decomposition under a plan: random factors, a random S."""

    def decomposed(spec: LayerSpec, plan: LayerPlan) -> Decomposition:
        shapes = FORMATS[plan.format].shapes(spec, plan.rank) if plan.rank else ()
        values = torch.randn(spec.matrix_shape)
        mask = select(values, spec, pattern(plan.pattern), plan.kept(spec))
        return Decomposition(spec, plan, tuple(torch.randn(shape) for shape in shapes), values * mask, mask)

    return decomposed
