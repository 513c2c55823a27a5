"""Starts, and problems without much in them."""

import pytest
import torch
from fitting import correlated, fit_of, problem_of, relative_error

from lrsearch.compress import fit as fit_module
from lrsearch.spec.plan import LayerPlan


def test_a_warm_start_serves_a_neighbouring_density(monkeypatch):
    monkeypatch.setattr(fit_module, "SMALL", 0)
    weight, c = correlated((1, 16, 24))
    problem = problem_of(weight, c)
    warm, cold = fit_of(problem, 3, 60, fit_of(problem, 3, 90)), fit_of(problem, 3, 60)
    assert int(warm.mask.sum()) == 60
    assert not torch.equal(warm.effective(), cold.effective())
    assert relative_error(weight, warm.effective(), c) <= 1.1 * relative_error(weight, cold.effective(), c)


@pytest.mark.parametrize("rank", [0, 3])
def test_small_layers_are_fitted_afresh_whatever_the_start(rank):
    problem = problem_of(*correlated((1, 16, 24)))
    assert torch.equal(fit_of(problem, rank, 60, fit_of(problem, rank, 90)).effective(), fit_of(problem, rank, 60).effective())


def awkward():
    weight, c = correlated((1, 12, 8))
    dead = c.clone()
    dead[:, :, 3] = dead[:, 3, :] = 0
    some_rows = torch.where(torch.arange(12)[:, None] < 5, weight, 0)
    return {
        "all-zero weight": (torch.zeros_like(weight), c),
        "all-zero inputs": (weight, torch.zeros_like(c)),
        "dead input": (weight, dead),
        "one example": (weight, torch.ones_like(c)),
        "tall weight of rank 5": (some_rows, c),
        "wide weight of rank 5": (some_rows.mT, correlated((1, 8, 12))[1]),
        "equal magnitudes": (torch.ones_like(weight), c),
        "row": correlated((1, 1, 9)),
        "column": correlated((1, 9, 1)),
        "one value": correlated((1, 1, 1)),
        "huge": (weight * 1e6, c * 1e6),
        "minute": (weight * 1e-6, c * 1e-6),
    }


@pytest.mark.parametrize("name", awkward())
def test_awkward_problems_give_sane_fits_of_exact_size(name):
    weight, c = awkward()[name]
    full = min(weight.shape[1:])
    problem = problem_of(weight, c)
    for rank in {0, 1, full}:
        for kept in {0, 1, weight.numel() // 2, weight.numel()} - ({0} if rank == 0 else set()):
            fit = fit_of(problem, rank, kept)
            assert int(fit.mask.sum()) == kept
            assert not fit.sparse[~fit.mask].any()
            assert [tuple(f.shape[:2]) for f in fit.factors] == ([(rank, weight.shape[2]), (weight.shape[1], rank)] if rank else [])
            rest = weight - fit.effective()
            assert float(((rest @ problem.gram) * rest).sum()) <= 1.001 * float(((weight @ problem.gram) * weight).sum())
            if rank == full or (rank == 0 and kept == weight.numel()):
                torch.testing.assert_close(fit.effective(), weight, rtol=0, atol=1e-3 * float(weight.abs().max()))


def test_low_rank_of_more_than_the_weights_own_rank_reconstructs():
    """Zero and repeated rows are common in pruned models; the surplus rank must do no harm."""
    for rows, columns in ((64, 32), (32, 64)):
        weight = torch.randn(1, rows, 3) @ torch.randn(1, 3, columns)
        problem = problem_of(weight, correlated((1, rows, columns))[1])
        for rank in (3, 8, 16, 24, 32):
            torch.testing.assert_close(fit_of(problem, rank, 0).effective(), weight, rtol=0, atol=1e-2)
            torch.testing.assert_close(fit_of(problem, rank, 40).effective(), weight, rtol=0, atol=1e-2)


@pytest.mark.parametrize(("density", "rival", "tried"), [(0.1, 2.0, True), (0.1, 0.5, False), (0.6, 0.5, True)])
def test_alternation_is_given_up_only_without_room_and_far_behind(density, rival, tried):
    """``rival`` in units of what it comes to."""
    problem = problem_of(*correlated((1, 16, 24)))
    plan = LayerPlan("svd", (4,), density)
    found, = problem._alternated(plan)
    assert bool(problem._alternated(plan, rival * problem.error(found.effective()))) == tried
