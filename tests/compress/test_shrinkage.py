"""Few examples give Gram matrices that other examples do not share: shrinking them helps."""

import pytest
import torch

from lrsearch.compress.fit import FitProblem, Shrinkage, shrunk
from lrsearch.compress.shrinkage import DAMPINGS, LOW_RANK, SUPPORT, VALUES, best_shrinkage
from lrsearch.compress.sparse_fit import SparseFit
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.plan import LayerPlan

LAYER = LayerSpec("layer", "linear", (12, 40))
HALF, SVD, BOTH = LayerPlan(density=0.5), LayerPlan("svd", (3,), 0.0), LayerPlan("svd", (3,), 0.2)


def gram(x):
    return (x.mT @ x / len(x))[None]


@pytest.fixture
def weight():
    return torch.randn(1, 12, 40)


@pytest.fixture
def inputs():
    """Many examples of correlated inputs."""
    return (torch.randn(8000, 40) @ (torch.eye(40) + 0.3 * torch.randn(40, 40))).relu()


def test_off_diagonal_values_are_reduced_and_the_diagonal_kept():
    c = gram(torch.randn(9, 4))
    found = shrunk(c, 0.25)
    off = ~torch.eye(4, dtype=torch.bool)
    torch.testing.assert_close(found.diagonal(dim1=1, dim2=2), c.diagonal(dim1=1, dim2=2))
    torch.testing.assert_close(found[0][off], 0.75 * c[0][off])
    assert torch.equal(shrunk(c, 0.0), c)


def test_a_problem_is_that_of_the_shrunk_matrix(weight, inputs):
    c, plan = gram(inputs), LayerPlan(density=0.3)
    ours, expected = FitProblem(LAYER, weight, c, Shrinkage(0.2)).fit(plan), FitProblem(LAYER, weight, shrunk(c, 0.2)).fit(plan)
    assert torch.equal(ours.effective(), expected.effective())
    assert not torch.equal(ours.effective(), FitProblem(LAYER, weight, c).fit(plan).effective())


def test_values_may_be_fitted_under_a_matrix_shrunk_further_than_the_support_is_searched_under(weight, inputs):
    c, plan = gram(inputs), LayerPlan(density=0.3)
    ours, support = FitProblem(LAYER, weight, c, Shrinkage(0.1, 0.5)), FitProblem(LAYER, weight, c, Shrinkage(0.1))
    both = FitProblem(LAYER, weight, c, Shrinkage(Shrinkage(0.1, 0.5).whole))
    found, searched = ours.fit(plan), support.fit(plan)
    assert torch.equal(found.mask, searched.mask)
    assert not torch.equal(found.mask, both.fit(plan).mask)
    assert both.error(found.effective()) < both.error(searched.effective())
    least = torch.linalg.lstsq(*_on(found.mask[0, 0], both.gram[0], weight[0, 0])).solution
    torch.testing.assert_close(found.sparse[0, 0][found.mask[0, 0]], least, rtol=0.05, atol=0.02)


def _on(mask, c, row):
    """What least squares of ``row`` on its support solve."""
    return c[mask][:, mask], (c @ row)[mask]


@pytest.mark.parametrize("shape", [(12, 40), (60, 40)])
def test_low_rank_and_errors_are_of_the_matrix_shrunk_as_a_whole(inputs, shape):
    c, layer, weight = gram(inputs), LayerSpec("layer", "linear", shape), torch.randn(1, *shape)
    both = Shrinkage(0.1, 0.5)
    apart, whole, support = (FitProblem(layer, weight, c, s) for s in (both, Shrinkage(both.whole), Shrinkage(both.support)))
    ours, expected, other = (problem.fit(LayerPlan("svd", (4,), 0.0)).effective() for problem in (apart, whole, support))
    torch.testing.assert_close(apart.root @ apart.root.mT, apart.gram, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(apart.gram, whole.gram, rtol=0.02, atol=0.01)  # damped before the second, and after
    assert (ours - expected).norm() < 0.1 * (other - expected).norm()


def test_many_examples_need_little(weight, inputs):
    assert best_shrinkage(LAYER, weight, gram(inputs[:4000]), gram(inputs[4000:])).whole <= 0.05


@pytest.mark.parametrize(
    ("dampings", "shares", "tried"), [((0.01,), (0.0, 0.5, 0.6), 2), ((0.01,), (0.9, 0.2, 0.0), 3), ((0.001, 0.5, 0.6), (0.0,), 2)]
)
def test_dampings_and_shares_are_tried_until_one_is_worse(weight, inputs, monkeypatch, dampings, shares, tried):
    """Of many examples, which need none. Dampings are tried with a share of 0."""
    searched, search = [], SparseFit.search
    monkeypatch.setattr(SparseFit, "search", lambda *args: searched.append(args) or search(*args))
    monkeypatch.setattr("lrsearch.compress.shrinkage.DAMPINGS", dampings)
    monkeypatch.setattr("lrsearch.compress.shrinkage.SUPPORT", shares)
    assert best_shrinkage(LAYER, weight, gram(inputs[:4000]), gram(inputs[4000:])).support == 0
    assert len(searched) == tried


def error(weight, few, check, shrinkage, plan=HALF):
    rest = weight - FitProblem(LAYER, weight, few, shrinkage).fit(plan).effective()
    return float(((rest @ check) * rest).sum())


def test_few_examples_need_some_and_the_fit_is_better_for_it(weight, inputs):
    few, check = gram(inputs[:30]), gram(inputs[4000:])
    found = best_shrinkage(LAYER, weight, few, check)
    assert found.support in SUPPORT
    assert found.values in VALUES[1:]
    assert error(weight, few, check, found) < 0.8 * error(weight, few, check, Shrinkage())


def test_inputs_that_are_seldom_active_need_damping_and_the_fit_is_better_for_it(weight, inputs):
    seldom = torch.ones(8000, 40)
    seldom[:, 10:] = torch.rand(8000, 30) < 0.01
    inputs = inputs * seldom
    fit, check = gram(inputs[:200]), gram(inputs[4000:])
    found = best_shrinkage(LAYER, weight, fit, check)
    assert found.damping > Shrinkage().damping
    assert error(weight, fit, check, found) < 0.9 * error(weight, fit, check, found._replace(damping=DAMPINGS[0]))


def test_inputs_of_little_energy_that_many_examples_have_need_little_damping(weight, inputs):
    inputs = inputs * torch.logspace(0, -1.5, 40)
    assert best_shrinkage(LAYER, weight, gram(inputs[:4000]), gram(inputs[4000:])).damping == DAMPINGS[0]


@pytest.mark.parametrize("importance", [None, torch.logspace(-1, 1, 12)[None, :, None]], ids=["even", "uneven"])
def test_low_rank_alone_is_damped_by_its_own_share(weight, inputs, importance):
    few, shrinkages = gram(inputs[:30]), (Shrinkage(0.1, 0.2, 0.05, 4.0), Shrinkage(0.1, 0.2, 0.2), Shrinkage(0.1, 0.2, 0.05))
    ours, apart, same = (FitProblem(LAYER, weight, few, s, importance) for s in shrinkages)
    assert torch.equal(ours.fit(SVD).effective(), apart.fit(SVD).effective())
    assert not torch.equal(ours.fit(SVD).effective(), same.fit(SVD).effective())
    for plan in (HALF, BOTH):
        assert torch.equal(ours.fit(plan).effective(), same.fit(plan).effective())


def test_low_rank_of_few_examples_needs_more_damping_and_the_fit_is_better_for_it(weight, inputs):
    few, check = gram(inputs[:15]), gram(inputs[4000:])
    found = best_shrinkage(LAYER, weight, few, check)
    assert found.low_rank in LOW_RANK[1:]
    assert error(weight, few, check, found, SVD) < 0.95 * error(weight, few, check, found._replace(low_rank=1.0), SVD)
