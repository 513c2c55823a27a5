"""The registry: a format that is registered is known everywhere, with nothing else touched."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from lrsearch.compress import artifact
from lrsearch.compress.apply import compress
from lrsearch.compress.fit import FitProblem
from lrsearch.compress.formats.base import LowRank
from lrsearch.compress.inventory import inventory
from lrsearch.compress.storage import Storage
from lrsearch.measure.count import cost_model
from lrsearch.profile.build import build
from lrsearch.spec.cost import layer_cost
from lrsearch.spec.formats import FORMATS, register
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.plan import LayerPlan, Plan
from lrsearch.spec.space import Range, Rule, Space

FC = LayerSpec("0", "linear", (6, 8), 1, 1)
CONV = LayerSpec("conv", "conv2d", (6, 8, 3, 3), 1, 5)


class Outer(LowRank):
    """Σ uvᵀ for linear layers."""

    name = "outer"

    def refusal(self, layer):
        return "" if layer.kind == "linear" else "outer is for linear layers"

    def max_rank(self, layer):
        return (min(layer.rows, layer.columns),)

    def shapes(self, layer, rank):
        return (rank[0], layer.columns), (rank[0], layer.rows)

    def macs(self, layer, rank):
        return layer.positions * self.params(layer, rank)

    def start(self, weight, problem, rank):
        u, s, v = torch.linalg.svd(weight[0])
        return s[: rank[0], None] * v[: rank[0]], u.T[: rank[0]]

    def compose(self, layer, factors):
        return (factors[1].T @ factors[0]).view(layer.matrix_shape)

    def contract(self, layer, x, factors, conv, bias):
        y = x @ factors[0].T @ factors[1]
        return y if bias is None else y + bias


@pytest.fixture
def outer():
    register(Outer)
    yield Outer
    del FORMATS["outer"]


@pytest.fixture
def network():
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))


def test_these_are_registered():
    assert set(FORMATS) == {"svd", "spatial-svd", "tucker2", "cp", "tt"}
    assert all(form.name == name for name, form in FORMATS.items())


def test_register_returns_the_class_and_keeps_an_instance(outer):
    assert outer is Outer
    assert isinstance(FORMATS["outer"], Outer)


@pytest.mark.parametrize("name", ["svd", "dense", "outer"])
def test_a_taken_name_is_refused_and_the_owner_stays(outer, name):
    before = dict(FORMATS)
    with pytest.raises(ValueError, match=f"'{name}' is taken"):
        register(type("Thief", (Outer,), {"name": name}))
    assert before == FORMATS


def test_an_unregistered_name_is_no_plan_and_no_space():
    with pytest.raises(ValueError, match=r"'outer' \(one of dense, .*svd"):
        LayerPlan("outer", (2,), 0.0)
    with pytest.raises(ValidationError, match="unknown format 'outer'; one of .*svd"):
        Rule(formats=("svd", "outer"))


def test_plans_and_costs_know_a_registered_format(outer):
    plan = LayerPlan("outer", (2,), 0.25)
    assert (str(plan), plan.family) == ("outer rank 2 + density 0.25", "low-rank+sparse")
    assert Plan.from_dict(Plan({"0": plan}).to_dict())["0"] == plan
    assert plan.refusal(FC) == ""
    assert plan.refusal(CONV) == "outer is for linear layers"
    assert LayerPlan("outer", (2, 2), 0.0).refusal(FC) == "outer takes 1 ranks there, not 2"
    cost = layer_cost(FC, plan)
    assert (cost.params, cost.macs, cost.weight_bytes) == (28 + 12, 28 + 48, 4 * 40 + 6)


def test_menus_offer_it_where_it_is_not_refused(outer):
    rule = Rule(families=("low-rank",), formats=("outer", "svd"), rank_ratio=Range(min=0.34, max=0.34, steps=1))
    menus = Space(rules=(rule,)).menus((FC, CONV))
    assert menus == {
        "0": [LayerPlan(), LayerPlan("outer", (2,), 0.0), LayerPlan("svd", (2,), 0.0)],
        "conv": [LayerPlan(), LayerPlan("svd", (2,), 0.0)],
    }


def test_fits_of_it_are_nearly_optimal_and_better_with_a_sparse_part(outer):
    x = torch.randn(1, 50, 8) @ torch.randn(8, 8)
    problem = FitProblem(FC, torch.randn(1, 6, 8), x.mT @ x)

    def error(*plan):
        fit = problem.fit(LayerPlan(*plan))
        assert [tuple(f.shape) for f in fit.factors] == list(FORMATS[plan[0]].shapes(FC, plan[1]) if plan[1] else ())
        return problem.error(fit.effective())

    alone = error("outer", (2,), 0.0)
    assert error("svd", (2,), 0.0) <= alone < 1.05 * error("svd", (2,), 0.0)
    assert error("outer", (2,), 0.25) < min(alone, error("dense", (), 0.25))


def test_profiles_modules_counts_and_files_serve_it(outer, network, tmp_path):
    x, plan = torch.randn(20, 8), Plan({"0": LayerPlan("outer", (2,), 0.25), "2": LayerPlan("outer", (1,), 0.0)})
    layers = inventory(network, x[:2]).layers
    profile = build(network, layers, {name: [LayerPlan(), p] for name, p in plan.layers.items()}, [x[:10]], [x[10:]], tmp_path / "profile")
    fits = profile.fits(plan)
    small = compress(network, layers, plan, fits)
    expected = (x @ fits["0"].effective()[0].T + network[0].bias).relu() @ fits["2"].effective()[0].T + network[2].bias
    torch.testing.assert_close(small(x), expected, rtol=1e-4, atol=1e-5)
    cost = cost_model(network, layers, x[:2])(plan)
    artifact.save(small, plan, tmp_path / "model", {}, Storage(layers))
    assert cost.params == sum(p.numel() for p in small.parameters())
    assert cost.weight_bytes == (tmp_path / "model" / artifact.WEIGHTS).stat().st_size
    assert torch.equal(artifact.load(tmp_path / "model", network)(x), small(x))
