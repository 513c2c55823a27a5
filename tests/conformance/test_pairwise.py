from itertools import combinations, product

import pytest
from catalogue import CASES
from pairwise import pairwise

PRODUCT = [row for row in product("abcd", range(5), (True, False, None)) if row[:2] != ("a", 0)]


def met(rows):
    return {pair for row in rows for pair in combinations(enumerate(row), 2)}


@pytest.mark.parametrize(("rows", "most"), [(PRODUCT, 25), ([case.row for case in CASES], 250)], ids=["a product", "the catalogue"])
def test_few_rows_are_enough_for_every_two_values_to_meet(rows, most):
    few = pairwise(rows)
    assert met(few) == met(rows)
    assert set(few) <= set(rows)
    assert len(few) == len(set(few)) <= most
    assert few == pairwise(rows)


def test_where_no_two_meet_twice_all_rows_are_needed():
    assert pairwise([(0, 1, 2), (3, 4, 5)]) == [(0, 1, 2), (3, 4, 5)]
    assert pairwise([]) == []
