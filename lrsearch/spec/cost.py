"""Cost and Budget: exact static costs from shapes, and the limits put on them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import nan
from typing import Any

from lrsearch.errors import ConfigError
from lrsearch.spec.formats import FORMATS
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.metrics import METRICS, OWN, CostMetric, is_number, limited_metric, others, unknown_limit
from lrsearch.spec.pattern import pattern
from lrsearch.spec.plan import LayerPlan, Plan
from lrsearch.spec.storage import ValueType, layer_bytes, row_bytes
from lrsearch.spec.unread import channels_read, drops_columns, may_leave_out, row_values


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
        more: metric → cost in the metrics that were registered besides, which are attributes too: NaN where one was not counted.
    """

    params: int = 0
    macs: int = 0
    nonzero_macs: int = 0
    weight_bytes: int = 0
    latency_ms: float = 0.0
    more: Mapping[str, float] = field(default_factory=dict, hash=False)

    def __getattr__(self, name: str) -> float:
        more = self.__dict__.get("more", {})
        if name in more:
            value: float = more[name]
            return value
        if not name.startswith("_") and name in METRICS:
            return nan
        raise AttributeError(f"no cost {name!r}")

    def __add__(self, other: "Cost") -> "Cost":
        return self._with(other, 1)

    def __sub__(self, other: "Cost") -> "Cost":
        return self._with(other, -1)

    def _with(self, other: "Cost", sign: int) -> "Cost":
        own = {m: getattr(self, m) + sign * getattr(other, m) for m in OWN}
        names = dict.fromkeys([*self.more, *other.more])
        return Cost(**own, more={m: self.more.get(m, 0) + sign * other.more.get(m, 0) for m in names})

    def to_dict(self) -> dict[str, float]:
        """Metric → cost, without a latency that was not measured."""
        return {**{m: getattr(self, m) for m in OWN if m != "latency_ms" or self.latency_ms}, **self.more}

    @classmethod
    def from_dict(cls, data: Mapping[str, float]) -> "Cost":
        """Inverse of :meth:`to_dict`; knows metrics that are not registered in this process."""
        own: dict[str, Any] = {m: v for m, v in data.items() if m in OWN}
        return cls(**own, more={m: v for m, v in data.items() if m not in OWN})


def measured(dense: Cost) -> list[str]:
    """The metrics that a study has."""
    return [*(m for m in OWN if m != "latency_ms" or dense.latency_ms), *dense.more]


BY_SHAPE = frozenset({"params", "macs", "nonzero_macs", "weight_bytes"})  # metrics that a layer's shape and plan tell


def layer_cost(layer: LayerSpec, plan: LayerPlan, values: ValueType = "float32") -> Cost:
    """Cost of one layer's weight, stored as ``values`` (its bias belongs to the fixed part of the model)."""
    form, kept, sparse = FORMATS.get(plan.format), plan.kept(layer), pattern(plan.pattern)
    low_rank = form.params(layer, plan.rank) if form else 0
    low_rank_macs = form.macs(layer, plan.rank) if form else 0
    computed = sparse.computed(layer, kept) if kept or form or layer.plain else layer.numel  # other layers of zeros run as dense ones
    cost = Cost(
        params=low_rank + kept,
        macs=low_rank_macs + computed * layer.positions,
        nonzero_macs=low_rank_macs + kept * layer.positions,
        weight_bytes=layer_bytes(layer, plan, values),
    )
    more = {name: metric.layer(layer, plan, cost) for name, metric in others().items()}
    return replace(cost, more=more) if more else cost


def unread_cost(layer: LayerSpec, plan: LayerPlan, outputs: int, values: ValueType = "float32") -> Cost:
    """What of :func:`layer_cost` is for outputs that nobody reads, where only so many ``outputs`` are read."""
    dropped = layer.rows - outputs
    if dropped <= 0 or not may_leave_out(layer, plan):
        return Cost()
    left_out = dropped * row_values(layer, plan)
    macs = left_out * layer.positions if outputs else layer_cost(layer, plan).macs
    return Cost(params=left_out, macs=macs, nonzero_macs=macs, weight_bytes=dropped * row_bytes(layer, plan, values))


@dataclass(frozen=True)
class CostModel:
    """Predicts the cost of any plan of one model.

    Attributes:
        fixed: everything that no plan changes.
        layers: the compressible layers.
        dense: the model as it was brought, every tensor in its own type; what ratios refer to.
        values: how values are stored.
        latency: layer name → what it may become → milliseconds; empty where latency is not measured.
        spared: layer name → what it and the layer that reads it may become → milliseconds that outputs take which are not read.
    """

    fixed: Cost
    layers: tuple[LayerSpec, ...]
    dense: Cost
    values: ValueType = "float32"
    latency: Mapping[str, Mapping[LayerPlan, float]] = field(default_factory=dict)
    spared: Mapping[str, Mapping[tuple[LayerPlan, LayerPlan], float]] = field(default_factory=dict)

    def __call__(self, plan: Plan) -> Cost:
        whole = sum((self.layer(layer, plan[layer.name]) for layer in self.layers), self.fixed)
        return sum((Cost() - self.unread(name, plan[name], plan[reader]) for name, reader in self.readers.items()), whole)

    @cached_property
    def readers(self) -> dict[str, str]:
        """Layer name → name of the layer that alone reads its outputs."""
        return {layer.name: layer.read_by for layer in self.layers if layer.read_by in self._specs}

    @cached_property
    def _specs(self) -> dict[str, LayerSpec]:
        return {layer.name: layer for layer in self.layers}

    def unread(self, name: str, plan: LayerPlan, reader: LayerPlan) -> Cost:
        """What layer ``name`` under ``plan`` costs less beside ``reader``, what the layer that reads it becomes."""
        if not drops_columns(reader):
            return Cost()
        layer, read_by = self._specs[name], self._specs[self.readers[name]]
        cost = unread_cost(layer, plan, channels_read(read_by, reader), self.values)
        return replace(cost, latency_ms=self.spared.get(name, {}).get((plan, reader), 0.0))

    def layer(self, layer: LayerSpec, plan: LayerPlan) -> Cost:
        """Cost of one layer's weight."""
        cost = layer_cost(layer, plan, self.values)
        return replace(cost, latency_ms=self.latency[layer.name][plan]) if self.latency else cost

    def timed(
        self, dense_ms: float, latency: Mapping[str, Mapping[LayerPlan, float]],
        spared: Mapping[str, Mapping[tuple[LayerPlan, LayerPlan], float]] | None = None,
    ) -> "CostModel":
        """The same with latencies: what differs from ``dense_ms``, the whole dense model's, is the layers' own."""
        rest = dense_ms - sum(latency[layer.name][LayerPlan()] for layer in self.layers)
        fixed, dense = replace(self.fixed, latency_ms=rest), replace(self.dense, latency_ms=dense_ms)
        return replace(self, fixed=fixed, dense=dense, latency=latency, spared=spared or {})


@dataclass(frozen=True, init=False)
class Budget:
    """Upper limits, all of which hold at once; None means no limit.

    A number in (0, 1] is a ratio of the dense model's cost, an integer above 1 an absolute
    limit in the metric's own unit (values, multiply-accumulates, bytes). Bytes may also be given
    with a unit, such as ``"128 KiB"`` or ``"5 MB"``. ``latency_ms`` is always absolute, in
    milliseconds; ``latency_ratio`` is its ratio of the dense model's. Metrics that were registered
    besides are limited by their names, as they say.

    Raises:
        ConfigError: a limit is neither, or of no metric.
    """

    limits: Mapping[str, float]

    def __init__(
        self, params: float | None = None, macs: float | None = None, nonzero_macs: float | None = None,
        weight_bytes: float | str | None = None, latency_ms: float | None = None, latency_ratio: float | None = None,
        **others: float | str | None,
    ) -> None:
        given = {
            "params": params, "macs": macs, "nonzero_macs": nonzero_macs, "weight_bytes": weight_bytes, "latency_ms": latency_ms,
            "latency_ratio": latency_ratio, **others,
        }
        object.__setattr__(self, "limits", {key: _limit(key, limit) for key, limit in given.items() if limit is not None})

    def __hash__(self) -> int:
        return hash(frozenset(self.limits.items()))

    def __getattr__(self, key: str) -> float | None:
        if key.startswith("_") or (key not in (limits := self.__dict__.get("limits", {})) and unknown_limit(key)):
            raise AttributeError(key)
        value: float | None = limits.get(key)
        return value

    def items(self) -> Iterable[tuple[str, float]]:
        return list(self.limits.items())

    def resolve(self, dense: Cost) -> dict[str, float]:
        """Absolute limits by metric; those of what is counted in whole things are rounded down."""
        found: dict[str, float] = {}
        for key, limit in self.limits.items():
            metric = _metric(key)
            ratio = key == metric.ratio_key or (not metric.ratio_key and limit <= 1)
            absolute = limit * getattr(dense, metric.name) if ratio else limit
            absolute = int(absolute) if metric.whole else absolute
            found[metric.name] = min(absolute, found.get(metric.name, absolute))
        return found

    def key(self, metric: str, dense: Cost) -> str:
        """The name of the limit that decides about ``metric``."""
        ratio_key = METRICS[metric].ratio_key
        if ratio_key not in self.limits:
            return metric
        absolute = self.limits.get(metric)
        return ratio_key if absolute is None or self.limits[ratio_key] * getattr(dense, metric) < absolute else metric


def _metric(key: str) -> CostMetric:
    """The metric that the limit ``key`` is about.

    Raises:
        ConfigError: there is none.
    """
    if found := limited_metric(key):
        return found
    raise ConfigError(unknown_limit(key), value=key, place="budget", remedy="Name one of these.")


def _limit(key: str, limit: float | str) -> float:
    """``limit`` as a number; see :class:`Budget`."""
    metric = _metric(key)
    if key == metric.name:
        return metric.limit(limit)
    if is_number(limit) and 0 < float(limit) <= 1:
        return float(limit)
    unit = metric.unit or f"in its own unit: {metric.name}"
    raise ConfigError(
        "must be a ratio of the dense model in (0, 1]", value=limit, place=f"budget.{key}",
        remedy=f"For example 0.8; {unit} are {metric.name}.",
    )
