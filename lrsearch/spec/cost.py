"""Cost and Budget: exact static costs from shapes, and the limits put on them."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from math import inf
from typing import Any

from lrsearch.errors import ConfigError
from lrsearch.spec.formats import FORMATS
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.pattern import pattern
from lrsearch.spec.plan import LayerPlan, Plan
from lrsearch.spec.storage import ValueType, layer_bytes
from lrsearch.spec.units import parse_bytes


@dataclass(frozen=True)
class Cost:
    """What a model takes.

    Attributes:
        params: stored values; zeros of S are not stored, indices are not values.
        macs: multiply-accumulates per example (FLOPs are twice that) as a dense runtime
            executes them: zeros of S are multiplied all the same, but for whole columns and rows.
        nonzero_macs: the same with the zeros of S skipped.
        weight_bytes: size of ``weights.safetensors``: values and positions of the compressible layers
            (see :mod:`lrsearch.spec.storage`), everything else in the state dict, the file's header.
        latency_ms: milliseconds of a batch on the backend that the study names; 0 where it names none.
    """

    params: int = 0
    macs: int = 0
    nonzero_macs: int = 0
    weight_bytes: int = 0
    latency_ms: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(getattr(self, f) + getattr(other, f) for f in METRICS))

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(*(getattr(self, f) - getattr(other, f) for f in METRICS))

    def to_dict(self) -> dict[str, float]:
        """Without a latency that was not measured."""
        return {k: v for k, v in asdict(self).items() if v or k != "latency_ms"}


METRICS: tuple[str, ...] = tuple(f.name for f in fields(Cost))


def measured(dense: Cost) -> list[str]:
    """The metrics that a study has."""
    return [m for m in METRICS if m != "latency_ms" or dense.latency_ms]


def layer_cost(layer: LayerSpec, plan: LayerPlan, values: ValueType = "float32") -> Cost:
    """Cost of one layer's weight, stored as ``values`` (its bias belongs to the fixed part of the model)."""
    form, kept, sparse = FORMATS.get(plan.format), plan.kept(layer), pattern(plan.pattern)
    low_rank = form.params(layer, plan.rank) if form else 0
    low_rank_macs = form.macs(layer, plan.rank) if form else 0
    computed = sparse.computed(layer, kept) if kept or form else layer.numel  # a layer of zeros runs as a dense one
    return Cost(
        params=low_rank + kept,
        macs=low_rank_macs + computed * layer.positions,
        nonzero_macs=low_rank_macs + kept * layer.positions,
        weight_bytes=layer_bytes(layer, plan, values),
    )


@dataclass(frozen=True)
class CostModel:
    """Predicts the cost of any plan of one model.

    Attributes:
        fixed: everything that no plan changes.
        layers: the compressible layers.
        dense: the model as it was brought, every tensor in its own type; what ratios refer to.
        values: how values are stored.
        latency: layer name → what it may become → milliseconds; empty where latency is not measured.
    """

    fixed: Cost
    layers: tuple[LayerSpec, ...]
    dense: Cost
    values: ValueType = "float32"
    latency: Mapping[str, Mapping[LayerPlan, float]] = field(default_factory=dict)

    def __call__(self, plan: Plan) -> Cost:
        return sum((self.layer(layer, plan[layer.name]) for layer in self.layers), self.fixed)

    def layer(self, layer: LayerSpec, plan: LayerPlan) -> Cost:
        """Cost of one layer's weight."""
        cost = layer_cost(layer, plan, self.values)
        return replace(cost, latency_ms=self.latency[layer.name][plan]) if self.latency else cost

    def timed(self, dense_ms: float, latency: Mapping[str, Mapping[LayerPlan, float]]) -> "CostModel":
        """The same with latencies: what differs from ``dense_ms``, the whole dense model's, is the layers' own."""
        rest = dense_ms - sum(latency[layer.name][LayerPlan()] for layer in self.layers)
        fixed, dense = replace(self.fixed, latency_ms=rest), replace(self.dense, latency_ms=dense_ms)
        return replace(self, fixed=fixed, dense=dense, latency=latency)


@dataclass(frozen=True)
class Budget:
    """Upper limits, all of which hold at once; None means no limit.

    A number in (0, 1] is a ratio of the dense model's cost, an integer above 1 an absolute
    limit in the metric's own unit (values, multiply-accumulates, bytes). Bytes may also be given
    with a unit, such as ``"128 KiB"`` or ``"5 MB"``. ``latency_ms`` is always absolute, in
    milliseconds; ``latency_ratio`` is its ratio of the dense model's.

    Raises:
        ConfigError: a limit is neither.
    """

    params: float | None = None
    macs: float | None = None
    nonzero_macs: float | None = None
    weight_bytes: float | str | None = None
    latency_ms: float | None = None
    latency_ratio: float | None = None

    def __new__(cls, *_: Any, **limits: Any) -> "Budget":
        refuse_unknown(limits)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        if isinstance(self.weight_bytes, str):
            object.__setattr__(self, "weight_bytes", parse_bytes(self.weight_bytes, "budget.weight_bytes"))
        for metric, limit in self.items():
            number = isinstance(limit, int | float) and not isinstance(limit, bool)
            if not number or not _KINDS.get(metric, _ratio_or_whole)(limit):
                rule, remedy = _RULES.get(metric, _RULES[""])
                raise ConfigError(rule, value=limit, place=f"budget.{metric}", remedy=remedy)

    def items(self) -> Iterable[tuple[str, float]]:
        return [(m, getattr(self, m)) for m in LIMITS if getattr(self, m) is not None]

    def resolve(self, dense: Cost) -> dict[str, float]:
        """Absolute limits by metric, rounded down but for milliseconds."""
        limits: dict[str, float] = {m: int(v * getattr(dense, m)) if v <= 1 else int(v) for m, v in self.items() if "latency" not in m}
        ms = [v for v in (self.latency_ms, self.latency_ratio and self.latency_ratio * dense.latency_ms) if v is not None]
        return {**limits, "latency_ms": min(ms)} if ms else limits

    def key(self, metric: str, dense: Cost) -> str:
        """The name of the limit that decides about ``metric``."""
        if metric != "latency_ms" or self.latency_ratio is None:
            return metric
        tighter = self.latency_ms is None or self.latency_ratio * dense.latency_ms < self.latency_ms
        return "latency_ratio" if tighter else metric


LIMITS: tuple[str, ...] = tuple(f.name for f in fields(Budget))


def refuse_unknown(limits: Iterable[object]) -> None:
    """Check that all of ``limits`` are names of limits.

    Raises:
        ConfigError: one is not.
    """
    for name in limits:
        if name not in LIMITS:
            near = difflib.get_close_matches(str(name), LIMITS, 1)
            remedy = _HINTS.get(str(name).lower(), f"Did you mean {near[0]!r}?" if near else "Name one of these.")
            raise ConfigError(f"unknown metric {str(name)!r}; one of {', '.join(LIMITS)}", value=name, place="budget", remedy=remedy)


_HINTS = {
    "flops": "MACs are half of FLOPs: Budget(macs=…).",
    "parameters": "Values that are stored are params: Budget(params=…).",
    "latency": "Budget(latency_ms=…) are milliseconds, Budget(latency_ratio=…) is a share of the dense model's.",
    "bytes": "Budget(weight_bytes='2 MB').", "size": "Budget(weight_bytes='2 MB').", "memory": "Budget(weight_bytes='2 MB').",
}


def _ratio_or_whole(limit: float) -> bool:
    return 0 < limit <= 1 or (1 < limit < inf and limit == int(limit))


_KINDS: Mapping[str, Callable[[float], bool]] = {"latency_ms": lambda v: 0 < v < inf, "latency_ratio": lambda v: 0 < v <= 1}
_RULES = {
    "": ("must be a ratio of the dense model in (0, 1] or a whole number above 1", "For example 0.3, or 80000."),
    "latency_ms": ("must be a number of milliseconds above 0", "For example 4.5; a share of dense is latency_ratio."),
    "latency_ratio": ("must be a ratio of the dense model in (0, 1]", "For example 0.8; milliseconds are latency_ms."),
}
