"""Few examples give Gram matrices that other examples do not share: shrinking them helps."""

import pytest
import torch

from lrsearch.compress.fit import FitProblem, shrunk
from lrsearch.compress.shrinkage import SHRINKAGES, best_shrinkage
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.plan import LayerPlan

LAYER = LayerSpec("layer", "linear", (12, 40))


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
    ours, expected = FitProblem(LAYER, weight, c, 0.2).fit(plan), FitProblem(LAYER, weight, shrunk(c, 0.2)).fit(plan)
    assert torch.equal(ours.effective(), expected.effective())
    assert not torch.equal(ours.effective(), FitProblem(LAYER, weight, c).fit(plan).effective())


def test_many_examples_need_little(weight, inputs):
    assert best_shrinkage(LAYER, weight, gram(inputs[:4000]), gram(inputs[4000:])) <= 0.05


def test_few_examples_need_some_and_the_fit_is_better_for_it(weight, inputs):
    few, check = gram(inputs[:30]), gram(inputs[4000:])
    share = best_shrinkage(LAYER, weight, few, check)
    assert share in SHRINKAGES[1:]

    def error(share):
        rest = weight - FitProblem(LAYER, weight, few, share).fit(LayerPlan(density=0.3)).effective()
        return float(((rest @ check) * rest).sum())

    assert error(share) < 0.8 * error(0.0)
