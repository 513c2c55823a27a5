"""A network with decided outputs, some of its layers decomposed, and the three sets."""

from pathlib import Path

import pytest
import torch
from torch import nn

from lrsearch.compress import artifact
from lrsearch.compress.apply import compress
from lrsearch.compress.fit import Decomposition, FitProblem
from lrsearch.compress.matricize import to_matrix
from lrsearch.profile.statistics import collect
from lrsearch.spec.plan import LayerPlan, Plan
from lrsearch.task.data import Examples


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
def fits(network, layers, plan, white_fits) -> dict[str, Decomposition]:
    return white_fits(network, layers, plan)


@pytest.fixture
def folder(network, layers, plan, fits, tmp_path) -> Path:
    """A saved model, fitted as if its inputs were uncorrelated, which leaves something to gain."""
    artifact.save(compress(network, layers, plan, fits), plan, tmp_path / "0012", {"model": None, "scores": [1, 2]})
    return tmp_path / "0012"


@pytest.fixture
def built():
    """A compressed model with the fits and the tensors that a polish found."""

    def built(network, layers, plan, found):
        small = compress(network, layers, plan, found.fits)
        small.load_state_dict({**small.state_dict(), **found.tensors})
        return small.eval()

    return built


@pytest.fixture
def unpolished():
    """A compressed model, each layer fitted by itself to the inputs that it has in the dense network."""

    def unpolished(network, layers, plan, x):
        statistics, fits = collect(network, layers, [x], []), {}
        for spec in (s for s in layers if s.name in plan.layers):
            weight = to_matrix(network.get_submodule(spec.name).weight.detach(), spec)
            fits[spec.name] = FitProblem(spec, weight, statistics[spec.name].gram).fit(plan[spec.name])
        return compress(network, layers, plan, fits).eval()

    return unpolished


@pytest.fixture
def error():
    """Mean squared difference of two models' outputs."""

    @torch.no_grad()
    def error(model, dense, x) -> float:
        return float((model(x) - dense(x)).square().mean())

    return error


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module of the user's; returns its name."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(text: str, name: str = f"zoo_{tmp_path.name}") -> str:
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write
