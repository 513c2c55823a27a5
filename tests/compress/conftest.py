"""One layer of every kind, with an input that is as wide as it is not high."""

import pytest
import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn

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
}


EVEN_SAME = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


@pytest.fixture(params=[pytest.param(name, marks=EVEN_SAME) for name in LAYERS])
def layer(request) -> nn.Linear | nn.Conv2d:
    torch.manual_seed(0)
    return LAYERS[request.param]().eval()


@pytest.fixture
def layer_input(layer) -> Tensor:
    shape = (4, 3, 7) if isinstance(layer, nn.Linear) else (4, 6, 8, 11)
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=generator).relu() + torch.rand(shape, generator=generator)
