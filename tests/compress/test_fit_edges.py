"""Problems without much in them."""

import pytest
import torch
from fitting import correlated, fit_of, problem_of


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
