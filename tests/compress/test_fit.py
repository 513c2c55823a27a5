import pytest
import torch

from lrsearch.compress.fit import FitProblem
from lrsearch.compress.inventory import layer_spec
from lrsearch.compress.matricize import gram, input_rows, to_matrix
from lrsearch.compress.sparsify import support
from lrsearch.spec.formats import FORMATS
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.plan import LayerPlan


def problem_of(weight, c):
    """The problem of a weight ``(groups, rows, columns)``, as a 1x1 convolution."""
    groups, rows, columns = weight.shape
    return FitProblem(LayerSpec("layer", "conv2d", (groups * rows, columns, 1, 1), groups), weight, c)


def fit_of(problem, rank, kept, start=None):
    plan = LayerPlan("svd" if rank else "dense", (rank,) if rank else (), kept / problem.weight.numel())
    return problem.fit(plan, start)


def max_rank(spec):
    return 0 if FORMATS["svd"].refusal(spec) else FORMATS["svd"].max_rank(spec)[0]


def top(values, kept):
    return values * support(values, kept)


def relative_error(weight, effective, gram):
    """Squared output error over the output's energy: the Gram norm of ``weight - effective``."""
    rest = weight - effective
    return float(((rest @ gram) * rest).sum() / ((weight @ gram) * weight).sum())


def correlated(shape, seed=0):
    """A weight ``(groups, rows, columns)`` and the Gram matrix of correlated, non-negative inputs."""
    groups, _, columns = shape
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(groups, 8 * columns, columns, generator=generator) @ torch.randn(groups, columns, columns, generator=generator)).relu()
    return torch.randn(shape, generator=generator), gram(x) / (8 * columns)


@pytest.fixture
def problem(layer, layer_input):
    """Of every kind of layer: its spec, weight matrix and Gram matrix."""
    spec = layer_spec(layer, "layer")
    return spec, to_matrix(layer.weight.detach(), spec.groups), gram(input_rows(layer, layer_input))


def test_nothing_left_out_reconstructs(problem):
    spec, weight, c = problem
    fits = [fit_of(problem_of(weight, c), 0, spec.numel)]
    if max_rank(spec):
        fits += [fit_of(problem_of(weight, c), max_rank(spec), kept) for kept in (0, spec.numel // 5)]
    for fit in fits:
        torch.testing.assert_close(fit.effective(), weight, rtol=0, atol=2e-4)


def test_sparse_error_falls_with_density(problem):
    spec, weight, c = problem
    errors = [relative_error(weight, fit_of(problem_of(weight, c), 0, round(d * spec.numel)).effective(), c) for d in (0.1, 0.3, 0.6, 0.9)]
    assert errors == sorted(errors, reverse=True)
    assert 1 > errors[0] > errors[-1]


def test_low_rank_error_falls_with_rank(problem):
    spec, weight, c = problem
    errors = [relative_error(weight, fit_of(problem_of(weight, c), r, 0).effective(), c) for r in range(1, max_rank(spec) + 1)]
    assert errors == sorted(errors, reverse=True)
    assert not errors or errors[0] < 1


def test_low_rank_plus_sparse_beats_its_low_rank_part_and_falls_with_both():
    weight, c = correlated((1, 16, 24))
    problem = problem_of(weight, c)
    error = {(r, k): relative_error(weight, fit_of(problem, r, k).effective(), c) for r in (1, 3, 6) for k in (0, 20, 60, 120)}
    for r in (1, 3, 6):
        falling = [error[r, k] for k in (0, 20, 60, 120)]
        assert falling == sorted(falling, reverse=True)
    for k in (0, 20, 60, 120):
        falling = [error[r, k] for r in (1, 3, 6)]
        assert falling == sorted(falling, reverse=True)


@pytest.mark.parametrize("shape", [(1, 16, 24), (1, 24, 16), (12, 1, 9), (2, 6, 18)], ids=str)
@pytest.mark.parametrize("density", [0.05, 0.2, 0.5, 0.8])
@pytest.mark.parametrize("inputs", ["correlated", "uncorrelated"])
def test_sparse_fit_is_no_worse_than_magnitude_pruning(shape, density, inputs):
    weight, c = correlated(shape)
    c = c if inputs == "correlated" else torch.eye(shape[2]).expand_as(c)
    kept = round(density * weight.numel())
    plain = relative_error(weight, top(weight, kept), c)
    assert relative_error(weight, fit_of(problem_of(weight, c), 0, kept).effective(), c) <= plain * 1.001


@pytest.mark.parametrize("shape", [(1, 16, 24), (1, 24, 16)], ids=str)
def test_low_rank_fit_is_better_than_the_plain_svd(shape):
    weight, c = correlated(shape)
    u, s, v = torch.linalg.svd(weight[0], full_matrices=False)
    for rank in (1, 4, 8, 15):
        plain = relative_error(weight, (u[:, :rank] * s[:rank] @ v[:rank])[None], c)
        assert relative_error(weight, fit_of(problem_of(weight, c), rank, 0).effective(), c) < plain


@pytest.mark.parametrize("shape", [(1, 12, 20), (1, 20, 12)], ids=str)
def test_low_rank_fit_is_near_the_optimum(shape):
    """The best possible error is the tail of the singular values of W C^1/2; damping costs a little of it."""
    weight, c = correlated(shape)
    whitened = torch.linalg.svdvals(weight[0] @ torch.linalg.cholesky(c[0])).square()
    best = float(whitened[4:].sum() / whitened.sum())
    assert best * 0.999 <= relative_error(weight, fit_of(problem_of(weight, c), 4, 0).effective(), c) <= best * 1.05


@pytest.mark.parametrize("density", [0.1, 0.3, 0.6])
def test_sparse_support_is_better_than_the_largest_magnitudes(density):
    """Even if those are given their best values, by least squares row by row."""
    weight, c = correlated((1, 16, 24))
    kept = round(density * weight.numel())
    rival = torch.zeros_like(weight)
    for i, on in enumerate(support(weight, kept)[0]):
        rival[0, i, on] = torch.linalg.solve(c[0][on][:, on], c[0][on] @ weight[0, i])
    fit = fit_of(problem_of(weight, c), 0, kept)
    assert relative_error(weight, fit.effective(), c) < 0.95 * relative_error(weight, rival, c)


def test_warm_start_serves_a_neighbouring_density():
    weight, c = correlated((1, 16, 24))
    problem = problem_of(weight, c)
    for rank in (0, 3):
        warm = fit_of(problem, rank, 60, fit_of(problem, rank, 90))
        assert int(warm.mask.sum()) == 60
        cold = relative_error(weight, fit_of(problem, rank, 60).effective(), c)
        assert relative_error(weight, warm.effective(), c) <= 1.05 * cold


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
