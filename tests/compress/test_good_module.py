"""A compressed model is a good nn.Module: it can be saved, copied, exported, traced, cast and printed."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from lrsearch.compress.apply import compress
from lrsearch.compress.inventory import inventory
from lrsearch.spec.plan import LayerPlan, Plan

X = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
PLAN = Plan({
    "0": LayerPlan("svd", (2,), 0.3), "2": LayerPlan(density=0.5, pattern="column"), "4": LayerPlan("svd", (2,), 0.0),
    "6": LayerPlan(density=0.4), "10": LayerPlan("svd", (1,), 0.5, "row"),
})  # fmt: skip


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.ConvTranspose2d(8, 6, 2, stride=2), nn.ReLU(),
        nn.Conv2d(6, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 5),
    ).eval()
    made = compress(model, inventory(model, X).layers, PLAN)
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(0.5 * torch.randn_like(p))
    return made


def saved(small):
    file = io.BytesIO()
    torch.save(small, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def reloaded(small):
    file, empty = io.BytesIO(), copy.deepcopy(small)
    torch.save(small.state_dict(), file)
    file.seek(0)
    with torch.no_grad():
        for p in empty.parameters():
            p.zero_()
    empty.load_state_dict(torch.load(file, weights_only=True))
    return empty


WAYS = {
    "torch.save": saved, "pickle": lambda m: pickle.loads(pickle.dumps(m)), "deepcopy": copy.deepcopy, "state_dict": reloaded,
    "torch.export": lambda m: torch.export.export(m, (X,)).module(), "torch.fx": torch.fx.symbolic_trace,
    "torch.jit.trace": lambda m: torch.jit.trace(m, X), "share_memory": lambda m: copy.deepcopy(m).share_memory(),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace")
@pytest.mark.parametrize("way", WAYS)
def test_it_computes_the_same_afterwards(small, way):
    with torch.no_grad():
        torch.testing.assert_close(WAYS[way](small)(X), small(X))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.02), (torch.bfloat16, 0.1), (torch.float64, 1e-5)], ids=str)
def test_it_can_be_cast(small, dtype, tolerance):
    with torch.no_grad():
        cast, expected = copy.deepcopy(small).to(dtype)(X.to(dtype)), small(X)
    assert cast.dtype == dtype
    assert float((cast.float() - expected).norm() / expected.norm()) < tolerance


def test_it_prints_what_each_layer_is(small):
    lines = repr(small)
    assert "conv2d 8×3×3×3: svd rank 2 + density 0.3, 143 values" in lines
    assert "conv_transpose2d 8×6×2×2: svd rank 2" in lines
    assert "linear 5×24: svd rank 1 + density 0.5 row" in lines


def test_a_hooked_and_traced_layer_is_a_leaf_with_a_name_of_its_own(small):
    graph = torch.fx.symbolic_trace(small).graph
    assert {node.target for node in graph.nodes if node.op == "call_module"} >= {"1", "3", "9"}
