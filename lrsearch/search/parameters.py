"""The search space as Optuna sees it: parameters of a trial ↔ a plan that meets every budget."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, FloatDistribution

from lrsearch.search.decoder import Decoder
from lrsearch.spec.formats import FORMATS
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.plan import LayerPlan, Plan
from lrsearch.spec.space import FAMILIES

Floats = NDArray[np.float64]
Spans = Mapping[str, tuple[float, float]]
SPREAD = 3.0  # the most that a log weight may be from 0
TARGET = "target/"
SCALES = np.geomspace(16, 0.01, 160)  # factors tried, the largest first, until ranks and densities meet the budget
ROUNDING = 1e-9  # share of a cost that floating point may be off by


class Parameters(ABC):
    """What a trial's parameters mean. All have ``target/METRIC``, the cost aimed at as a ratio of dense.

    Layers that match the same glob of ``groups`` share their parameters, which then bear the glob's name.

    Args:
        decoder: has the choices of all layers, and solves the knapsack.
        targets: metric → lowest and highest ratio worth aiming at.
        groups: globs over layer names.

    Attributes:
        space: parameter → distribution.
        names: the parameters besides the targets.
    """

    def __init__(self, decoder: Decoder, targets: Spans, groups: Sequence[str] = ()) -> None:
        self.decoder = decoder
        labels = [next((g for g in groups if fnmatchcase(name, g)), name) for name in decoder.names]
        self.groups = list(dict.fromkeys(labels))
        self.group = np.array([self.groups.index(label) for label in labels])
        dense = decoder.costs.dense
        self.dense: dict[str, float] = {m: getattr(dense, m) for m in targets}
        aims: dict[str, BaseDistribution] = {TARGET + m: FloatDistribution(low, high, log=True) for m, (low, high) in targets.items()}
        weights = self._weights()
        self.names, self.space = list(weights), aims | weights

    @abstractmethod
    def _weights(self) -> dict[str, BaseDistribution]:
        """The parameters besides the targets."""

    @abstractmethod
    def of(self, plan: Plan | None) -> dict[str, float]:
        """What stands for the plan of a control, or for none, besides the targets."""

    @abstractmethod
    def plan(self, parameters: Mapping[str, float]) -> Plan | None:
        """The plan that ``parameters`` mean; None if none meets the budgets."""

    def limits(self, parameters: Mapping[str, float]) -> dict[str, float]:
        """The targets as absolute costs."""
        return {m: parameters[TARGET + m] * dense for m, dense in self.dense.items()}


class KnapsackParameters(Parameters):
    """``layer/NAME`` and ``family/FAMILY`` are natural logarithms of factors on the profile's predicted damage."""

    def _weights(self) -> dict[str, BaseDistribution]:
        families = {"sparse": -1, "dense": -1} | {family: i for i, family in enumerate(FAMILIES[1:])}
        self.family = np.array([families[f] for f in self.decoder.families])
        self.of_choice = self.group[self.decoder.layer]
        names = [*(f"family/{family}" for family in FAMILIES[1:]), *(f"layer/{group}" for group in self.groups)]
        return {name: FloatDistribution(-SPREAD, SPREAD) for name in names}

    def of(self, plan: Plan | None) -> dict[str, float]:  # noqa: ARG002
        """The profile's own damage."""
        return dict.fromkeys(self.names, 0.0)

    def damage(self, weights: Floats) -> Floats:
        """``(choices,)`` damage as weighted by the logarithms ``(families - 1 + groups,)``."""
        n = len(FAMILIES) - 1
        family = np.append(weights[:n], 0.0)
        weighted: Floats = self.decoder.damage * np.exp(family[self.family] + weights[n:][self.of_choice])
        return weighted

    def plan(self, parameters: Mapping[str, float]) -> Plan | None:
        """The plan of least weighted damage within budgets and targets; within the budgets alone if no plan meets the targets."""
        damage = self.damage(np.array([parameters[name] for name in self.names]))
        return self.decoder.solve(damage, self.limits(parameters)) or self.decoder.solve(damage, {})


class DirectParameters(Parameters):
    """``rank/NAME`` is the rank of L as a ratio of the largest (mean over its modes), ``density/NAME`` the share of values S keeps."""

    def _weights(self) -> dict[str, BaseDistribution]:
        self.ratios = np.array([ratios(layer, plan) for layer, plan in self.decoder.choices])
        return {f"{kind}/{group}": FloatDistribution(0, 1) for group in self.groups for kind in ("rank", "density")}

    def of(self, plan: Plan | None) -> dict[str, float]:
        """Ranks and densities of ``plan``, means over each group."""
        values = self.ratios[self.decoder.terms(plan or Plan())]
        means = [values[self.group == i].mean(0) for i in range(len(self.groups))]
        named = {g: dict(zip(("rank", "density"), mean.tolist(), strict=True)) for g, mean in zip(self.groups, means, strict=True)}
        return {f"{kind}/{g}": value for g, mean in named.items() for kind, value in mean.items()}

    def plan(self, parameters: Mapping[str, float]) -> Plan | None:
        """Every layer's choice next to its rank and density, once these are scaled, all by one factor, to the largest that meets
        budgets and targets; where no factor does, the plan of least damage."""
        decoder, limits = self.decoder, self.limits(parameters)
        limits |= {m: min(limit, limits.get(m, limit)) for m, limit in decoder.limits.items()}
        aims = np.array([[parameters[f"{kind}/{g}"] for kind in ("rank", "density")] for g in self.groups])[self.group]
        for scale in SCALES:
            pick = self._nearest(np.clip(scale * aims, 0, 1))
            if all(decoder.total(m, pick) <= limit for m, limit in limits.items()):
                return decoder.plan(pick)
        return decoder.solve(decoder.damage, limits) or decoder.solve(decoder.damage, {})

    def _nearest(self, aims: Floats) -> NDArray[np.int64]:
        """``(layers,)`` choices next to ``aims`` (layers, 2); of equally near ones the least damaging."""
        layer = self.decoder.layer
        apart = np.round(((self.ratios - aims[layer]) ** 2).sum(1), 9)
        order = np.lexsort((self.decoder.damage, apart, layer))
        return order[np.searchsorted(layer, np.arange(len(aims)))]


def ratios(layer: LayerSpec, plan: LayerPlan) -> tuple[float, float]:
    """Rank of L as a ratio of the largest, mean over its modes, and density of S."""
    if not plan.rank:
        return 0.0, plan.density
    most = FORMATS[plan.format].max_rank(layer)
    return float(np.mean(np.divide(plan.rank, most))), plan.density


PARAMETERS: dict[str, type[Parameters]] = {"knapsack": KnapsackParameters, "direct": DirectParameters}
