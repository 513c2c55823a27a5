from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrsearch.spec.front import as_good_for_less, crowding, dominance, hypervolume, non_dominated, ranks, wasteful

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


def test_the_cheaper_is_as_good_where_noise_explains_what_it_loses_more():
    p = [(1.0, 5.0), (1.2, 4.0), (1.2, 5.0), (1.0, 4.0), (2.0, 4.0)]
    assert as_good_for_less(p, 0.0)[0].tolist() == [False, False, False, True, False]
    noise = np.full((5, 5), 0.3)
    assert as_good_for_less(p, noise)[0].tolist() == [False, True, False, True, False]  # equal cost is not less
    noise[0, 1] = noise[1, 0] = 0.1
    assert as_good_for_less(p, noise)[0].tolist() == [False, False, False, True, False]
    assert as_good_for_less([(1.0, 5.0, 5.0), (1.0, 4.0, 6.0), (1.0, 5.0, 4.0)], 0.3)[0].tolist() == [False, False, True]


def test_a_chain_of_small_differences_does_not_leave_its_cheapest_member_alone():
    p = [(1.4, 1.0), (1.2, 2.0), (1.0, 3.0), (0.8, 4.0), (0.79, 5.0)]
    excelled = as_good_for_less(p, 0.25)
    assert ranks(dominance(p), excelled).tolist() == [0, 1, 0, 1, 2]
    assert ranks(dominance(p)).tolist() == [0, 0, 0, 0, 0]


noisy = st.lists(st.tuples(st.integers(1, 9), st.integers(20, 24), st.integers(20, 24)), min_size=1, max_size=9).flatmap(
    lambda p: st.tuples(st.just(p), st.lists(st.floats(0, 9), min_size=len(p) ** 2, max_size=len(p) ** 2)),
)


@given(noisy)
@settings(deadline=None)
def test_with_any_noise_ranks_end_and_who_is_dominated_is_behind(drawn):
    p, numbers = drawn
    errors = np.triu(np.reshape(numbers, (len(p), len(p))), 1)
    noise = errors + errors.T
    dominated, excelled = dominance(p) | wasteful(p, noise, 5.0), as_good_for_less(p, noise)
    for relation in (dominated, excelled):
        assert not np.linalg.matrix_power(relation.astype(np.int64), len(p)).any()  # no way of as many steps as points: no cycle
    rank = ranks(dominated, excelled)
    assert sorted(set(rank.tolist())) == list(range(rank.max() + 1))
    assert (rank[:, None] > rank)[dominated].all()
    assert not (excelled & (rank[:, None] == rank)).any()
    waits = rank > [max((rank[j] + 1 for j in np.flatnonzero(row)), default=0) for row in dominated]
    for i in np.flatnonzero(waits):  # only for one that stayed in the rank before
        assert (rank[excelled[i]] == rank[i] - 1).any()


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
