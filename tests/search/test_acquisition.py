import numpy as np
import pytest

from lrsearch.search.acquisition import expected_gain
from lrsearch.spec.front import hypervolume


def gains(rng, costs, points, draws):
    """Means and standard errors of what candidates add to the hypervolume, by drawing their quality."""
    n = 5
    mean, stderr = rng.uniform(0, 1, n), rng.uniform(0.05, 0.4, n)
    where, known = rng.uniform(0, 1, (n, costs)), rng.uniform(0, 1.1, (points, 1 + costs))
    reference = np.ones(1 + costs)
    before = hypervolume(known, reference)
    drawn = mean[:, None] + stderr[:, None] * rng.standard_normal((n, draws))
    added = [[hypervolume(np.r_[known, [[y, *c]]], reference) - before for y in ys] for c, ys in zip(where, drawn, strict=True)]
    return expected_gain(mean, stderr, where, known, reference), np.mean(added, 1), np.std(added, 1) / draws**0.5


@pytest.mark.slow
@pytest.mark.parametrize(("costs", "points"), [(1, 0), (1, 1), (1, 8), (2, 5), (3, 4)])
def test_it_is_the_mean_of_what_drawn_qualities_add(costs, points):
    expected, mean, error = gains(np.random.default_rng(0), costs, points, 2000)
    assert np.abs(expected - mean) == pytest.approx(0, abs=5 * error.max() + 1e-9)
    assert mean.max() > 10 * error.max()


def test_nothing_is_gained_where_the_front_is_surely_better():
    gain = expected_gain(np.array([0.5]), np.array([1e-3]), np.array([[0.5]]), np.array([[0.4, 0.4]]), np.ones(2))
    assert gain == pytest.approx(0, abs=1e-12)


def test_a_sure_candidate_gains_what_it_dominates_alone():
    gain = expected_gain(np.array([0.2]), np.array([1e-9]), np.array([[0.3]]), np.array([[0.5, 0.1], [0.1, 0.6]]), np.ones(2))
    assert gain == pytest.approx(0.3 * 0.3)


def test_nothing_below_the_floor_is_gained():
    known, costs = np.array([[0.2, 0.5]]), np.array([[0.3]])
    gains = [expected_gain(np.array([m]), np.array([1e-9]), costs, known, np.ones(2), 0.2) for m in (0.2, -5.0)]
    assert np.ravel(gains) == pytest.approx([0.8 * 0.2] * 2)
