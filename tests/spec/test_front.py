from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrsearch.spec.front import hypervolume, non_dominated

SIDE = 5
points = st.integers(2, 3).flatmap(lambda m: st.lists(st.tuples(*[st.integers(0, SIDE + 1)] * m), min_size=1, max_size=9))


def dominates(a, b):
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


@given(points)
@settings(deadline=None)
def test_non_dominated_by_definition(p):
    expected = [not any(dominates(q, a) for q in p) and a not in p[:i] for i, a in enumerate(p)]
    assert non_dominated(p).tolist() == expected


@given(points)
@settings(deadline=None)
def test_hypervolume_counts_the_dominated_cells(p):
    m = len(p[0])
    cells = sum(any(all(x <= c for x, c in zip(a, cell, strict=True)) for a in p) for cell in product(range(SIDE), repeat=m))
    assert hypervolume(p, [SIDE] * m) == pytest.approx(cells)


def test_hypervolume_of_nothing_is_zero():
    assert hypervolume(np.empty((0, 2)), [1.0, 1.0]) == 0.0
    assert hypervolume([[2.0, 0.5]], [1.0, 1.0]) == 0.0
