"""Findings: what a verification has found so far."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from lrsearch.errors import LrsearchError
from lrsearch.report.certificate import Check
from lrsearch.study.front_conditions import Condition

RULES = {"<=": "at most", ">=": "at least", "<": "below", ">": "above", "==": "equal"}


@dataclass
class Findings:
    """What was found so far; see :class:`Certificate`."""

    checks: list[Check] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    unchecked: dict[str, str] = field(default_factory=dict)
    conditions: dict[str, Any] = field(default_factory=dict)

    def equal(self, name: str, found: float, wanted: float) -> None:
        self.checks.append(Check(name, found, "equal", wanted, found == wanted))

    def within(self, name: str, found: float, wanted: float, tolerance: float) -> None:
        off = abs(found - wanted)
        rule = f"within {tolerance:.2g} of"
        self.checks.append(Check(name, found, rule, wanted, off <= tolerance, 1 - off / tolerance))

    def at_most(self, name: str, found: float, limit: float) -> None:
        self.holds(name, found, Condition(name, "<=", limit))

    def holds(self, name: str, found: float, condition: Condition) -> None:
        sign, limit = 1 if condition.operator.startswith("<") else -1, condition.number
        margin = sign * (limit - found) / abs(limit) if limit and condition.operator != "==" else None
        self.checks.append(Check(name, found, RULES[condition.operator], limit, condition.holds(found), margin))

    def attempt(self, names: Iterable[str], step: Callable[[], None]) -> None:
        """Run ``step``; what it cannot do here is noted as not checked."""
        try:
            step()
        except LrsearchError as error:
            self.unchecked |= dict.fromkeys(names, str(error))
