"""S alone: how long its support is searched for, and what one shrunk problem takes over from another."""

from itertools import combinations

import pytest
import torch

from lrsearch.compress.fit import FitProblem
from lrsearch.compress.sparse_fit import PENALTIES, SparseFit
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.pattern import pattern
from lrsearch.spec.plan import LayerPlan

LAYER = LayerSpec("layer", "linear", (48, 64))


@pytest.fixture
def mixed():
    """A Gram matrix ``(1, 64, 64)`` with ones on its diagonal."""
    return torch.corrcoef(torch.randn(64, 64) + torch.randn(64))[None]


@pytest.fixture
def steps(monkeypatch):
    """The penalties of the steps taken."""
    taken, step = [], SparseFit.step
    monkeypatch.setattr(SparseFit, "step", lambda self, *args: taken.append(args[3]) or step(self, *args))
    return taken


def search(kept, gram, penalties=PENALTIES):
    solver, target = SparseFit(LAYER, gram), torch.randn(1, 48, 64)
    kind = pattern("unstructured")
    return solver.search(target @ gram, kind, kept, solver.top(target, kind, kept), penalties)


def test_a_support_of_many_values_that_has_settled_ends_the_search(steps):
    strong = [5 * rho for rho in PENALTIES]
    found = search(2000, torch.eye(64)[None], strong)
    assert int((found != 0).sum()) == 2000
    assert steps == strong[: len(steps)]
    assert len(strong) / 2 < len(steps) < len(strong)


def test_a_support_that_moves_does_not(steps, mixed):
    search(2000, mixed, PENALTIES[:4])
    assert steps == list(PENALTIES[:4])


def test_a_support_of_few_values_is_searched_to_the_end(steps):
    strong = [5 * rho for rho in PENALTIES]
    search(900, torch.eye(64)[None], strong)
    assert steps == strong


def test_small_layers_take_every_penalty_twice_as_often_as_large_ones(steps, mixed, monkeypatch):
    problem = FitProblem(LAYER, torch.randn(1, 48, 64), mixed)
    problem.fit(LayerPlan(density=0.2))
    small = list(steps)
    monkeypatch.setattr("lrsearch.compress.fit.SMALL", 0)
    steps.clear()
    problem.fit(LayerPlan(density=0.2))
    assert small == [rho for rho in PENALTIES for _ in range(2)]
    assert steps == list(PENALTIES)


def test_the_best_rows_are_kept_as_they_are(mixed):
    target = torch.randn(1, 6, 64) * torch.tensor([1.0, 1.1, 0.9, 1.0, 1.2, 1.0]).view(1, 6, 1)
    solver = SparseFit(LayerSpec("layer", "linear", (6, 64)), mixed, 0.2)
    found = solver.fit(target, target @ mixed, pattern("row"), 3 * 64, 1)
    kept = [found[0, row].equal(target[0, row]) for row in range(6)]
    assert sum(kept) == 3
    assert not found[0, [not k for k in kept]].any()
    choices = [target * torch.tensor([row in rows for row in range(6)]).view(1, 6, 1) for rows in combinations(range(6), 3)]
    assert solver.energy(target - found) == pytest.approx(min(solver.energy(target - choice) for choice in choices))


def test_where_there_is_no_room_for_inverses_steps_go_by_eigenvectors(mixed, monkeypatch):
    x, keeps, spares = torch.randn(1, 48, 64), SparseFit(LAYER, mixed), SparseFit(LAYER, mixed)
    expected = [keeps._solved(x, rho) for rho in (0.1, 0.2, 0.1)]
    assert list(keeps._inverses) == [0.1, 0.2]
    monkeypatch.setattr("lrsearch.compress.sparse_fit.MOST_CACHED", 64 * 64)
    found = [spares._solved(x, rho) for rho in (0.1, 0.2, 0.1)]
    assert list(spares._inverses) == [0.1]
    for ours, theirs, rho in zip(found, expected, (0.1, 0.2, 0.1), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours @ (mixed + rho * torch.eye(64)), x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("blocks", [1, 4])
def test_a_single_search_under_a_shrunk_matrix_keeps_no_inverse(mixed, blocks):
    drawn, x = 0.7 * mixed + 0.3 * torch.eye(64), torch.randn(1, 48, 64)
    whole = torch.block_diag(*[drawn[0, i : i + 64 // blocks, i : i + 64 // blocks] for i in range(0, 64, 64 // blocks)])
    gram = torch.stack([mixed[0, i : i + 64 // blocks, i : i + 64 // blocks] for i in range(0, 64, 64 // blocks)])
    found = SparseFit(LAYER, gram).shrunk(0.3)
    torch.testing.assert_close(found._solved(x, 0.1) @ (whole + 0.1 * torch.eye(64)), x, rtol=1e-3, atol=1e-3)
    assert not found._inverses


def test_least_squares_are_of_the_matrix_drawn_by_the_ridge(mixed):
    target = torch.randn(1, 48, 64)
    s = target * (torch.rand(1, 48, 64) < 0.3)
    drawn = 0.6 * mixed + 0.4 * torch.eye(64)
    (ours, error), (expected, _) = (solver.refine(target, s, 50) for solver in (SparseFit(LAYER, mixed, 0.4), SparseFit(LAYER, drawn)))
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)
    assert error == pytest.approx(float((((target - ours) @ drawn) * (target - ours)).sum()), rel=1e-3)
    assert error == pytest.approx(SparseFit(LAYER, mixed, 0.4).energy(target - ours), rel=1e-3)
