"""A network with decided outputs, some of its layers decomposed, and the three sets."""

import pytest
import torch
from torch import nn

from lrsearch.compress.fit import Decomposition, FitProblem
from lrsearch.compress.inventory import inventory
from lrsearch.compress.matricize import to_matrix
from lrsearch.proxy.data import Examples
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.plan import LayerPlan, Plan


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("LRSEARCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def network(tiny_model) -> nn.Module:
    with torch.no_grad():
        tiny_model.head.weight.mul_(30)
    return tiny_model


@pytest.fixture
def sets(tiny_data) -> dict[str, Examples]:
    x, y = tiny_data
    parts = {"calibration": slice(0, 60), "score": slice(60, 110), "train": slice(110, 160)}
    return {role: Examples((x[part], y[part]), role) for role, part in parts.items()}


@pytest.fixture
def plan() -> Plan:
    return Plan({
        "stem": LayerPlan("svd", (6,), 0.2), "grouped": LayerPlan(density=0.3), "pointwise": LayerPlan("svd", (4,), 0.0),
        "head": LayerPlan(density=0.5),
    })


@pytest.fixture
def layers(network, tiny_data) -> tuple[LayerSpec, ...]:
    return inventory(network, tiny_data[0][:2]).layers


@pytest.fixture
def fits(network, layers, plan) -> dict[str, Decomposition]:
    problems = {}
    for layer in (s for s in layers if s.name in plan.layers):
        weight = to_matrix(network.get_parameter(f"{layer.name}.weight").detach(), layer.groups)
        gram = torch.eye(layer.columns).expand(layer.groups, -1, -1)
        problems[layer.name] = FitProblem(weight, gram).fit(plan[layer.name].rank, plan[layer.name].kept(layer))
    return problems


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module of the user's; returns its name."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(text: str, name: str = f"zoo_{tmp_path.name}") -> str:
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write
