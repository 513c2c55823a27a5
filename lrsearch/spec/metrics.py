"""CostMetric: something that a model costs, and the registry of all that budgets and objectives may name."""

import difflib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar

from lrsearch.errors import ConfigError
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.registry import Registry
from lrsearch.spec.units import parse_bytes

if TYPE_CHECKING:
    from lrsearch.spec.cost import Cost
    from lrsearch.spec.plan import LayerPlan


class CostMetric(ABC):
    """A cost that is the sum over a model's layers and of the rest, known from shapes and plans alone.

    Attributes:
        name: in budgets, objectives, and as a column of the front.
        unit: of its values, as shown.
        title: in figures, whose axis is in percent of the dense model's.
        whole: it counts whole things: absolute limits are whole numbers, and limits are rounded down.
        ratio_key: name of the limit that is a ratio of the dense model's cost, if that is not ``name`` itself. A limit called
            ``name`` is then always absolute; without, one in (0, 1] is a ratio.
    """

    name: ClassVar[str]
    unit: ClassVar[str] = ""
    title: ClassVar[str] = ""
    whole: ClassVar[bool] = False
    ratio_key: ClassVar[str] = ""

    @abstractmethod
    def layer(self, layer: LayerSpec, plan: "LayerPlan", cost: "Cost") -> float:
        """What the weight of ``layer`` costs under ``plan``.

        Args:
            cost: of the same, in this package's own metrics, as the study stores values.
        """

    def rest(self, cost: "Cost") -> float:  # noqa: ARG002
        """What everything that no plan changes costs.

        Args:
            cost: of that, in this package's own metrics.
        """
        return 0.0

    def limit(self, limit: float | str) -> float:
        """An absolute limit as a number; bytes may have a unit, such as ``"128 KiB"``.

        Raises:
            ConfigError: it is none.
        """
        place = f"budget.{self.name}"
        number: Any = parse_bytes(limit, place) if isinstance(limit, str) and self.unit == "bytes" else limit
        if not is_number(number) or not self._allows(number):
            rule, remedy = self._rule()
            raise ConfigError(rule, value=limit, place=place, remedy=remedy)
        value: float = number
        return value

    def _allows(self, limit: float) -> bool:
        ratio = not self.ratio_key and 0 < limit <= 1
        return ratio or (0 < limit < inf and (not self.whole or limit == int(limit)))

    def _rule(self) -> tuple[str, str]:
        if self.ratio_key:
            kind = "whole number" if self.whole else "number"
            return f"must be a {kind} of {self.unit or self.name} above 0", f"For example 4.5; a share of dense is {self.ratio_key}."
        if self.whole:
            return "must be a ratio of the dense model in (0, 1] or a whole number above 1", "For example 0.3, or 80000."
        return "must be a ratio of the dense model in (0, 1] or a number above 1", "For example 0.3, or 4.5."


def is_number(value: object) -> bool:
    """Whether it is one; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


METRICS: Registry[CostMetric] = Registry(
    "metric", "lrsearch.metrics", base="lrsearch.extend.CostMetric", register="lrsearch.extend.METRICS.register", place="budget",
)  # fmt: skip


class _Own(CostMetric):
    """One of :class:`~lrsearch.spec.cost.Cost`'s own fields."""

    whole = True

    def layer(self, layer: LayerSpec, plan: "LayerPlan", cost: "Cost") -> float:  # noqa: ARG002
        value: float = getattr(cost, self.name)
        return value


@METRICS.register
class Params(_Own):
    """Stored values."""

    name, unit, title = "params", "values", "parameters stored, % of dense"


@METRICS.register
class Macs(_Own):
    """Multiply-accumulates as a dense runtime executes them."""

    name, unit, title = "macs", "multiply-accumulates", "MACs, % of dense"


@METRICS.register
class NonzeroMacs(_Own):
    """Multiply-accumulates without zeros."""

    name, unit, title = "nonzero_macs", "multiply-accumulates", "MACs without zeros, % of dense"


@METRICS.register
class WeightBytes(_Own):
    """Size of the file of weights."""

    name, unit, title = "weight_bytes", "bytes", "weight bytes, % of dense"


@METRICS.register
class Latency(_Own):
    """Measured, layer by layer."""

    name, unit, title = "latency_ms", "milliseconds", "latency, % of dense"
    whole, ratio_key = False, "latency_ratio"


OWN: tuple[str, ...] = tuple(METRICS)


def others() -> Mapping[str, CostMetric]:
    """The metrics that are registered besides this package's own."""
    return {name: metric for name, metric in METRICS.items() if name not in OWN}


def limit_names() -> tuple[str, ...]:
    """What a budget may name: the metrics, and the ratios of those that have one of their own."""
    return tuple(key for metric in METRICS.values() for key in (metric.name, metric.ratio_key) if key)


def limited_metric(key: str) -> CostMetric | None:
    """The metric that the limit ``key`` is about; None if there is none."""
    if key in METRICS:
        return METRICS[key]
    if not (found := _of_ratio(key)):
        METRICS.load_entry_points()
        found = _of_ratio(key)
    return found


def _of_ratio(key: str) -> CostMetric | None:
    return next((m for m in METRICS.values() if key and m.ratio_key == key), None)


_HINTS = {
    "flops": "MACs are half of FLOPs: name macs",
    "parameters": "values that are stored are params",
    "latency": "latency_ms are milliseconds, latency_ratio is a share of the dense model's",
    **dict.fromkeys(("bytes", "size", "memory"), "name weight_bytes, such as '2 MB'"),
}


def unknown_limit(key: str) -> str:
    """Why a budget cannot name ``key``; empty if it can."""
    if limited_metric(key):
        return ""
    near = difflib.get_close_matches(key, limit_names(), 1)
    hint = _HINTS.get(key.lower(), f"did you mean {near[0]!r}?" if near else METRICS.own)
    return f"unknown metric {key!r}; one of {', '.join(limit_names())}; {hint}"


def title(name: str) -> str:
    """Of the axis of a figure; its name for a metric that is not registered in this process."""
    found = METRICS[name].title if name in METRICS else ""
    return found or f"{name}, % of dense"
