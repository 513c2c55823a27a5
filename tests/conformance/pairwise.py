"""Few combinations instead of all: most faults need two values to meet, hardly any three (Kuhn, Wallace and Gallo 2004)."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from itertools import combinations

Row = tuple[Hashable, ...]


def pairwise(rows: Iterable[Row], costly: Callable[[Row], bool] = lambda row: False) -> list[Row]:
    """Rows in which every two values meet, each in its column, that meet in any row.

    A greedy set cover: next the row with the most pairs that are not yet met, of those one that is not costly, of those the one
    whose pairs were met least often, of those the first.
    """
    pairs = {row: set(combinations(enumerate(row), 2)) for row in rows}
    missing, met, chosen = set().union(*pairs.values()), Counter(), []
    while missing:
        chosen.append(max(pairs, key=lambda row: (len(pairs[row] & missing), not costly(row), -sum(met[pair] for pair in pairs[row]))))
        missing -= pairs[chosen[-1]]
        met.update(pairs[chosen[-1]])
    return chosen
