"""Layers too wide for one Gram matrix have one in blocks, and are fitted as if the blocks were strangers."""

import pytest
import torch
from torch import nn

from lrsearch.compress.fit import FitProblem
from lrsearch.compress.inventory import layer_spec
from lrsearch.compress.matricize import gram, input_rows, times, to_matrix
from lrsearch.compress.shrinkage import best_shrinkage
from lrsearch.profile.statistics import collect
from lrsearch.profile.sweep import sweep
from lrsearch.spec import layer as layer_module
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.plan import LayerPlan

PLANS = [
    LayerPlan(density=0.4), LayerPlan("svd", (3,), 0.0), LayerPlan("svd", (2,), 0.3), LayerPlan(density=0.5, pattern="column"),
    LayerPlan(density=0.5, pattern="2:4"), LayerPlan("tt", (2, 2), 0.1), LayerPlan("tucker2", (2, 3), 0.1),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _narrow(monkeypatch):
    monkeypatch.setattr(layer_module, "WHOLE", 20)
    monkeypatch.setattr(layer_module, "BLOCK", 12)


def test_vgg16_first_dense_layer_has_28_blocks(monkeypatch):
    monkeypatch.undo()
    layer = LayerSpec("fc", "linear", (4096, 25088))
    assert layer.gram_shape == (28, 896, 896)
    assert LayerSpec("fc", "linear", (4096, 16384)).gram_shape == (1, 16384, 16384)
    assert LayerSpec("conv", "conv2d", (64, 1024, 5, 5)).gram_shape == (32, 800, 800)


MODULES = {"linear": (lambda: nn.Linear(24, 6), (200, 24)), "conv": (lambda: nn.Conv2d(4, 6, 3), (20, 4, 6, 7)),
           "grouped": (lambda: nn.Conv2d(8, 6, 3, groups=2), (20, 8, 6, 7))}  # fmt: skip


@pytest.fixture(params=MODULES)
def wide(request):
    torch.manual_seed(0)
    make, shape = MODULES[request.param]
    module, x = make(), torch.randn(shape).relu()
    spec = layer_spec(module, "0")
    assert spec.blocks > 1
    whole = gram(input_rows(module, x + 0.5 * x.roll(1, 1)))
    size = spec.gram_shape[-1]
    mask = torch.block_diag(*[torch.ones(size, size)] * spec.blocks)
    total = gram(input_rows(module, x + 0.5 * x.roll(1, 1)), torch.zeros(spec.gram_shape))
    return spec, to_matrix(module.weight.detach(), spec), total, whole * mask


def test_blocks_are_those_on_the_diagonal(wide):
    _, weight, blocks, whole = wide
    both = times(torch.stack([weight, 2 * weight]), blocks)
    torch.testing.assert_close(times(weight, blocks), weight @ whole, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(both[1], 2 * weight @ whole, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_fits_are_those_of_the_whole_matrix_without_the_rest(wide, plan, monkeypatch):
    spec, weight, blocks, whole = wide
    if plan.refusal(spec):
        return
    ours = FitProblem(spec, weight, blocks).fit(plan).effective()
    monkeypatch.undo()
    assert spec.blocks == 1
    problem = FitProblem(spec, weight, whole)
    theirs = problem.fit(plan).effective()
    zero = problem.error(torch.zeros_like(weight))
    assert problem.error(ours) / zero == pytest.approx(problem.error(theirs) / zero, rel=0.02, abs=1e-4)


def test_a_wide_layer_is_profiled_with_errors_that_fall_as_values_are_kept():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(24, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(80, 24)
    spec = layer_spec(model[0], "0")
    statistics = collect(model, [spec], [x[:40]], x[40:].split(4))["0"]
    assert statistics.gram.shape == statistics.check.shape == (2, 12, 12)
    assert best_shrinkage(spec, to_matrix(model[0].weight.detach(), spec), statistics.gram, statistics.check).damping > 0
    menu = [LayerPlan(), *(LayerPlan(density=d) for d in (0.2, 0.5, 0.8))]
    error = sweep(to_matrix(model[0].weight.detach(), spec), spec, menu, statistics)["error"]
    assert error[0] == 0
    assert error[1] > error[2] > error[3] > 0


def test_names_with_slashes_and_of_any_length_have_statistics_on_disk(tmp_path):
    for name in ("block1/conv/MatMul", "x" * 300):
        model = nn.Sequential()
        model.add_module(name, nn.Linear(24, 6))
        spec = layer_spec(model[0], name)
        x = torch.randn(40, 24)
        found = collect(model, [spec], [x], [x], folder=tmp_path / name[:3], cap=0)[name].gram
        torch.testing.assert_close(found[0], x[:, :12].T @ x[:, :12] / 40)
