import pytest
import torch
from fitting import correlated, fit_of, problem_of, relative_error

from lrsearch.compress.inventory import layer_spec
from lrsearch.compress.joint_fit import low_rank_first, sparse_first
from lrsearch.compress.matricize import gram, input_rows, to_matrix
from lrsearch.compress.sparsify import support
from lrsearch.spec.formats import FORMATS
from lrsearch.spec.plan import LayerPlan


def max_rank(spec):
    return 0 if FORMATS["svd"].refusal(spec) else FORMATS["svd"].max_rank(spec)[0]


def top(values, kept):
    return values * support(values, kept)


@pytest.fixture
def problem(layer, layer_input):
    """Of every kind of layer: its spec, weight matrix and Gram matrix."""
    spec = layer_spec(layer, "layer")
    return spec, to_matrix(layer.weight.detach(), spec), gram(input_rows(layer, layer_input))


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


@pytest.mark.parametrize(("rank", "kept"), [(1, 400), (4, 200), (4, 800), (12, 400)])
def test_beside_l_too_s_has_its_least_squares_values(rank, kept):
    weight, c = correlated((1, 32, 48))
    problem = problem_of(weight, c)
    fit = fit_of(problem, rank, kept)
    _, least = problem.solver.refine((weight - fit.low_rank()) * problem.scale, fit.sparse * problem.scale, 200)
    assert problem.error(fit.effective()) <= 1.0005 * least


@pytest.mark.parametrize(("rank", "kept"), [(1, 400), (4, 200), (4, 800), (12, 400)])
def test_low_rank_plus_sparse_is_better_than_alternation(rank, kept):
    """Of truncation and whitened SVD, even if S then gets its best values: by as much as ADMM's supports are better."""
    weight, c = correlated((1, 32, 48))
    problem = problem_of(weight, c)
    s = torch.zeros_like(weight)
    for _ in range(80):
        u = torch.linalg.eigh((weight - s) @ problem.gram @ (weight - s).mT)[1][:, :, -rank:]
        rest = weight - u @ (u.mT @ (weight - s))
        s = top(rest * problem.scale, kept) / problem.scale
    s, _ = problem.solver.refine(rest * problem.scale, s * problem.scale, 50)
    rival = relative_error(weight, weight - rest + s / problem.scale, c)
    assert relative_error(weight, fit_of(problem, rank, kept).effective(), c) < 0.95 * rival


def test_a_small_layer_takes_the_better_of_both_orders():
    better = set()
    for seed in range(6):
        problem, plan = problem_of(*correlated((1, 16, 24), seed)), LayerPlan("svd", (2,), 0.2)
        errors = [order(problem, plan).error() for order in (low_rank_first, sparse_first)]
        assert problem.error(problem.fit(plan).effective()) == pytest.approx(min(errors), rel=1e-4)
        better.add(errors.index(min(errors)))
    assert better == {0, 1}


def test_with_s_first_l_is_left_what_s_alone_leaves():
    weight, c = correlated((1, 16, 24))
    sparse = top(weight, 60)
    fit = sparse_first(problem_of(sparse, c), LayerPlan("svd", (2,), 60 / weight.numel()))
    assert torch.equal(fit.s != 0, sparse != 0)
    assert fit.error() < 1e-4 * fit.solver.energy(fit.problem.target)
