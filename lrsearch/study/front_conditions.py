"""Conditions over the columns of the front, and the members that satisfy them."""

import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from lrsearch.errors import ConfigError
from lrsearch.spec.metrics import METRICS
from lrsearch.spec.score import FORMER_NAMES
from lrsearch.spec.units import parse_bytes

OPERATORS = {"<=": operator.le, ">=": operator.ge, "==": operator.eq, "<": operator.lt, ">": operator.gt}
_CONDITION = re.compile(r"\s*(\w+)\s*(<=|>=|==|<|>)\s*(\S.*?)\s*")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


@dataclass(frozen=True)
class Condition:
    """``column operator number``, such as ``latency_ms<=5``."""

    column: str
    operator: str
    number: float

    def holds(self, value: float) -> bool:
        return bool(OPERATORS[self.operator](value, self.number))

    def __str__(self) -> str:
        return f"{self.column}{self.operator}{self.number:g}"


def parse_conditions(text: str, columns: Sequence[str] | None = None, place: str = "--pick") -> tuple[Condition, ...]:
    """Conditions on ``columns`` (any if None) joined by commas, with numbers as a budget has them.

    Bytes may have a unit, such as ``weight_bytes<=128 KiB``; ``params<=0.3`` is a share of the dense model's, as ``params_ratio<=0.3`` is.

    Raises:
        ConfigError: one is not a known column, an operator and a number.
    """
    return tuple(_condition(part, columns, place) for part in text.split(","))


def column_of(name: str) -> str:
    """The column that ``name`` stands for: itself, that of a limit's ratio, such as ``latency_ratio``, or of a former name."""
    return next((f"{m.name}_ratio" for m in METRICS.values() if m.ratio_key == name), FORMER_NAMES.get(name, name))


def _condition(part: str, columns: Sequence[str] | None, place: str) -> Condition:
    found = _CONDITION.fullmatch(part)
    column = column_of(found[1]) if found else ""
    unit = column.endswith("_bytes") and found is not None and not _NUMBER.fullmatch(found[3])
    if not found or (columns is not None and column not in columns) or not (unit or _NUMBER.fullmatch(found[3])):
        raise ConfigError(
            "must be column, one of <= >= == < >, and a number, such as params_ratio<=0.3", value=repr(part), place=place,
            remedy=f"Columns: {', '.join(columns or ())}.",
        )
    number = float(parse_bytes(found[3], place)) if unit else float(found[3])
    return Condition(column if unit else _as_limited(column, number, columns), found[2], number)


def _as_limited(column: str, number: float, columns: Sequence[str] | None) -> str:
    """The column of the ratio where a budget would read ``number`` as one: ``params<=0.3`` are 30 % of the dense model's."""
    ratio = f"{column}_ratio"
    share = column in METRICS and not METRICS[column].ratio_key and 0 < number <= 1
    return ratio if share and (columns is None or ratio in columns) else column


def columns(front: pd.DataFrame) -> list[str]:
    """The columns of the front that conditions may name."""
    return [str(c) for c in front.select_dtypes("number")]


def choose(front: pd.DataFrame, objective: str, conditions: str, index: int | None, flag: str = "--") -> list[int]:
    """Rows of ``front`` to try in turn: those that satisfy ``conditions`` (all an empty one), the best first, or that at ``index``.

    Args:
        flag: what an error puts before the names ``pick`` and ``index``.

    Raises:
        ConfigError: a condition is none, no row satisfies them, or there is no such row.
    """
    if index is None:
        place = f"{flag}pick"
        return pick(front, objective, parse_conditions(conditions, columns(front), place) if conditions else (), place)
    if index not in front.index:
        rule = f"must be a row of the front, 0 to {len(front) - 1}"
        raise ConfigError(rule, value=index, place=f"{flag}index", remedy="See front.csv.")
    return [index]


def pick(front: pd.DataFrame, objective: str, conditions: Sequence[Condition], place: str = "--pick") -> list[int]:
    """Rows of ``front`` that satisfy all conditions, the best first.

    Args:
        front: as :func:`lrsearch.report.frame.front_frame` makes it.
        objective: ``divergence``, of which less is better, or ``metric``.
        place: where the conditions were given.

    Raises:
        ConfigError: none does.
    """
    chosen = front
    for condition in conditions:
        left = chosen[[condition.holds(v) for v in chosen[condition.column]]]
        if left.empty:
            seen = chosen[condition.column]
            value = f"{condition}, where {condition.column} is {seen.min():g} to {seen.max():g}" if len(seen) else "an empty front"
            raise ConfigError(
                "a member of the front must satisfy every condition", value=value, place=place, remedy="Ask for less, or search on.",
            )
        chosen = left
    return [int(i) for i in chosen.sort_values(objective, ascending=objective == "divergence", kind="stable").index]
