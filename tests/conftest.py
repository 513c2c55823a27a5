"""Shared fixtures: a small network with every kind of layer, and data that it can learn."""

import copy
import os
import signal
import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: the tests themselves run side by side

import hypothesis
import pytest
import torch
from sqlalchemy import Engine, event
from torch import Tensor, nn

from lrsearch.compress.fit import Decomposition, FitProblem
from lrsearch.compress.inventory import inventory
from lrsearch.compress.matricize import to_matrix
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.plan import Plan

hypothesis.settings.register_profile("untimed", deadline=None)  # on a busy machine any example may take long
hypothesis.settings.load_profile("untimed")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what it runs in the background; children would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous=OFF")

    event.listen(Engine, "connect", hurry)
    yield
    event.remove(Engine, "connect", hurry)


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory) -> Path:
    """A cache folder whose profiles are shared between tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def paced(request) -> bool:
    """Whether studies without latencies measure their fronts: building a model takes longer than all else in a tiny study."""
    return False


@pytest.fixture(autouse=True)
def pace(paced, monkeypatch) -> None:
    if not paced:
        monkeypatch.setattr("lrsearch.study.opening._front_timer", lambda *_: None)


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


@pytest.fixture
def layers(tiny_model: nn.Module, tiny_data: tuple[Tensor, Tensor]) -> tuple[LayerSpec, ...]:
    """The layers of :class:`TinyNet`."""
    return inventory(tiny_model, tiny_data[0][:2]).layers


@pytest.fixture
def white_fits() -> Callable[[nn.Module, tuple[LayerSpec, ...], Plan], dict[str, Decomposition]]:
    """Fits every layer of a plan as if its inputs were uncorrelated."""

    def fits(model: nn.Module, layers: tuple[LayerSpec, ...], plan: Plan) -> dict[str, Decomposition]:
        found = {}
        for spec in (s for s in layers if s.name in plan.layers):
            weight = to_matrix(model.get_parameter(f"{spec.name}.weight").detach(), spec)
            gram = torch.eye(spec.columns).expand(spec.groups, -1, -1)
            found[spec.name] = FitProblem(spec, weight, gram).fit(plan[spec.name])
        return found

    return fits


@pytest.fixture
def left_alone() -> Callable[[nn.Module], AbstractContextManager[None]]:
    """A context in which a model must stay as it is: tensors to the bit, modules, modes, gradients, hooks."""

    @contextmanager
    def check(model: nn.Module):
        state = copy.deepcopy(model.state_dict())
        modules = {name: (m, m.training) for name, m in model.named_modules()}
        flags = [p.requires_grad for p in model.parameters()]
        yield
        assert model.state_dict().keys() == state.keys()
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
        assert {name: (m, m.training) for name, m in model.named_modules()} == modules
        assert [p.requires_grad for p in model.parameters()] == flags
        assert all(p.grad is None for p in model.parameters())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())

    return check
