"""Shared fixtures: a small network with every kind of layer, and data that it can learn."""

import pytest
import torch
from sqlalchemy import Engine, event
from torch import Tensor, nn


class TinyNet(nn.Module):
    """``(n, 3, 12, 12)`` → ``(n, 4)``: strided, depthwise, grouped and 1x1 convolutions, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.pointwise = nn.Conv2d(16, 24, 1)
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.grouped(self.depthwise(x).relu())
        return self.head(self.pointwise(x.relu()).relu().mean((2, 3)))


@pytest.fixture(scope="session", autouse=True)
def quick_storage():
    """SQLite without waiting for the disk."""
    def hurry(connection, _):
        connection.execute("PRAGMA synchronous=OFF")

    event.listen(Engine, "connect", hurry)
    yield
    event.remove(Engine, "connect", hurry)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def tiny_data() -> tuple[Tensor, Tensor]:
    """160 examples of 4 classes: a pattern of the class under noise."""
    generator = torch.Generator().manual_seed(1)
    patterns = torch.randn(4, 3, 12, 12, generator=generator)
    y = torch.arange(160) % 4
    return patterns[y] + 0.7 * torch.randn(160, 3, 12, 12, generator=generator), y


@pytest.fixture
def tiny_model(tiny_data: tuple[Tensor, Tensor]) -> nn.Module:
    """A :class:`TinyNet` in eval mode, equal at every call; its BatchNorm has seen the data."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = TinyNet().train()
    with torch.no_grad():
        for x in tiny_data[0].split(40):
            model(x)
    return model.eval()
