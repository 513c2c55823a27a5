from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrsearch.spec.front import crowding, dominance, hypervolume, non_dominated, ranks, wasteful

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
def test_dominance_by_definition(p):
    assert dominance(p).tolist() == [[dominates(q, a) for q in p] for a in p]


@given(points)
@settings(deadline=None)
def test_a_rank_is_one_above_the_highest_that_dominates(p):
    dominated = dominance(p)
    rank = ranks(dominated)
    assert rank.tolist() == [max((rank[j] + 1 for j in np.flatnonzero(row)), default=0) for row in dominated]


def test_what_is_excused_counts_as_no_worse():
    p = [(1.0, 5.0), (1.2, 5.0), (1.2, 6.0), (2.0, 5.0)]
    assert ranks(dominance(p)).tolist() == [0, 1, 2, 2]
    excuse = np.full((4, 4), 0.3)
    assert ranks(dominance(p, excuse)).tolist() == [0, 0, 0, 1]
    excuse[2, 0] = excuse[0, 2] = 0.1
    assert ranks(dominance(p, excuse)).tolist() == [0, 0, 1, 1]


def test_what_saves_next_to_nothing_for_what_it_loses():
    p = [(1.0, 100.0), (3.0, 98.0), (2.0, 98.0), (3.0, 50.0), (0.5, 120.0)]
    found = wasteful(p, 0.0, 50.0)  # at 98 % of the cost up to 1 / 0.98 ** 50 = 2.75 times the loss
    assert found[:, 0].tolist() == [False, True, False, False, False]
    assert not found[:, 4].any()
    assert wasteful([(3.0, 98.0, 50.0), (1.0, 100.0, 100.0), (1.0, 100.0, 40.0)], 0.0, 50.0)[0].tolist() == [False, False, True]
    assert not wasteful(p, np.full((5, 5), 2.1), 50.0).any()
    assert not wasteful([(-0.1, 98.0), (-0.9, 100.0), (0.0, 101.0), (0.2, 100.5)], 0.0, 50.0).any()


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(20, 30), st.integers(20, 30)), min_size=1, max_size=9))
@settings(deadline=None)
def test_domination_with_a_wider_cone_is_transitive(p):
    over = dominance(p) | wasteful(p, 0.0, 5.0)
    assert not over.diagonal().any()
    assert not ((over.astype(int) @ over.astype(int) > 0) & ~over).any()


def test_the_outermost_have_endless_room_and_the_others_that_between_their_neighbours():
    assert crowding([(0, 10), (4, 5), (5, 4), (10, 0)]).tolist() == [np.inf, 0.5 + 0.6, 0.6 + 0.5, np.inf]
    assert crowding([(1, 1)]).tolist() == [np.inf]
    assert crowding([(1, 1), (1, 1), (1, 1)]).tolist().count(np.inf) == 2


@given(points)
@settings(deadline=None)
def test_hypervolume_counts_the_dominated_cells(p):
    m = len(p[0])
    cells = sum(any(all(x <= c for x, c in zip(a, cell, strict=True)) for a in p) for cell in product(range(SIDE), repeat=m))
    assert hypervolume(p, [SIDE] * m) == pytest.approx(cells)


def test_hypervolume_of_nothing_is_zero():
    assert hypervolume(np.empty((0, 2)), [1.0, 1.0]) == 0.0
    assert hypervolume([[2.0, 0.5]], [1.0, 1.0]) == 0.0
