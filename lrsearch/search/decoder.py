"""Decoder: weights of the knapsack and a target → a plan that meets every budget."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from math import ceil

import numpy as np
from numpy.typing import NDArray

from lrsearch.errors import BudgetError
from lrsearch.search.knapsack import Knapsack
from lrsearch.search.pairs import Pair
from lrsearch.spec.cost import Budget, CostModel
from lrsearch.spec.metrics import METRICS, OWN
from lrsearch.spec.plan import LayerPlan, Plan

Floats = NDArray[np.float64]
SHARES = 201  # of each layer's dense cost that the uniform control tries: all of it, half a percent less, and so on to nothing


class Decoder:
    """All choices of all layers in one list, with their costs and predicted damage.

    Args:
        costs: predicts the cost of any plan.
        menus: layer name → choices.
        limits: metric → largest cost of the whole model.
    """

    def __init__(self, costs: CostModel, menus: Mapping[str, Sequence[LayerPlan]], limits: Mapping[str, float]) -> None:
        self.costs, self.limits = costs, dict(limits)
        self.names = [layer.name for layer in costs.layers]
        self.choices = [(layer, plan) for layer in costs.layers for plan in menus[layer.name]]
        self._index = {(layer.name, plan): i for i, (layer, plan) in enumerate(self.choices)}
        sizes = [len(menus[name]) for name in self.names]
        self.layer = np.repeat(np.arange(len(sizes)), sizes)
        self.families = np.array([plan.family for _, plan in self.choices])
        table = [costs.layer(layer, plan) for layer, plan in self.choices]
        per_choice = {m: np.array([getattr(c, m) for c in table], dtype=np.float64) for m in (*OWN, *costs.dense.more)}
        self.knapsack = Knapsack(self.layer, per_choice, tuple(self._pairs(menus, per_choice)))
        self.damage: Floats = np.zeros(len(self.choices))

    def _pairs(self, menus: Mapping[str, Sequence[LayerPlan]], costs: Mapping[str, Floats]) -> Iterator[Pair]:
        """Layers with the one that reads them, each in one pair at most, those of most choices first.

        Where a layer is in no pair with its reader, as between two that are, or in a longer chain, what is surely saved counts in
        ``costs`` of the reader's choices: whole plans may cost less than the knapsack counts, never more.
        """
        taken, sizes = set[str](), {name: len(menu) for name, menu in menus.items()}
        for name, reader in sorted(self.costs.readers.items(), key=lambda pair: -sizes[pair[0]] * sizes[pair[1]]):
            less, second = self._less(name, reader, menus), self.names.index(reader)
            if {name, reader} & taken:
                for metric, table in less.items():
                    costs[metric][self.layer == second] -= table.min(0)
            else:
                taken |= {name, reader}
                yield Pair(self.names.index(name), second, less)

    def _less(self, name: str, reader: str, menus: Mapping[str, Sequence[LayerPlan]]) -> dict[str, Floats]:
        """Metric → ``(choices of name, choices of reader)`` what the first costs less beside the second."""
        table = [[self.costs.unread(name, own, other) for other in menus[reader]] for own in menus[name]]
        return {m: np.array([[getattr(c, m) for c in row] for row in table], dtype=np.float64) for m in OWN}

    def learn_damage(self, damage: Mapping[str, Floats]) -> None:
        """Take over the profile's predicted damage, layer name → ``(choices,)``."""
        self.damage = np.concatenate([damage[name] for name in self.names])

    def smallest(self, metric: str) -> float:
        """Smallest cost of the whole model that any plan reaches in ``metric``."""
        least: float = getattr(self.costs.fixed, metric) + self.knapsack.cheapest(metric)
        return int(least) if METRICS[metric].whole else least

    def refuse_unreachable(self, budget: Budget | None = None, left_dense: str = "") -> None:
        """Check that some plan meets every limit at once.

        Args:
            budget: that the limits come from, so that they are named as there.
            left_dense: the largest of what the space cannot change, and why, as
                :meth:`lrsearch.compress.inventory.Inventory.largest_dense` has it.

        Raises:
            BudgetError: none does; names the smallest cost that can be met.
        """
        more = f" Stays dense: {left_dense}." if left_dense else ""
        for metric, limit in self.limits.items():
            if (least := self.smallest(metric)) > limit:
                dense, key = getattr(self.costs.dense, metric), (budget or Budget()).key(metric, self.costs.dense)
                share = f" ({limit / dense:.3f} of dense)" if METRICS[metric].whole and dense else ""
                value = f"{round(limit / dense, 4)}" if key != metric else f"{round(limit, 4):,}{share}"
                smallest = f"{_enough(least)} ({least / dense:.3f} of dense)"
                raise BudgetError(
                    "some plan in the search space must meet the budget", value=value, place=f"budget.{key}",
                    remedy=f"The smallest possible is {smallest}; widen the space or the budget{self._narrower(metric)}.{more}",
                )
        if self.solve(np.ones(len(self.choices)), {}) is None:
            raise BudgetError(
                "some plan must meet all budgets at once", value=self.limits, place="budget",
                remedy="Each can be met alone, not all together; widen one of them.",
            )

    def _narrower(self, metric: str) -> str:
        """That values may be stored in fewer bytes, where that helps a budget of ``metric``."""
        wide = metric == "weight_bytes" and self.costs.values == "float32"
        return ", or store values in fewer bytes: weights: {values: int8}" if wide else ""

    def solve(self, damage: Floats, targets: Mapping[str, float], families: Collection[str] | None = None) -> Plan | None:
        """The plan of least summed ``damage`` within every budget and target.

        Args:
            damage: ``(choices,)``.
            targets: metric → further limit on the whole model's cost.
            families: families a layer may use besides dense; all if None.
        """
        limits = {m: float(v) for m, v in self.limits.items()}
        for metric, target in targets.items():
            limits[metric] = min(target, limits.get(metric, target))
        limits = {m: v - getattr(self.costs.fixed, m) for m, v in limits.items()}
        allowed = None if families is None else np.isin(self.families, ["dense", *families])
        pick = self.knapsack.solve(damage, limits, allowed)
        return None if pick is None else self.plan(pick)

    def uniform(self, targets: Mapping[str, float]) -> Plan | None:
        """Every layer at the same share of its own dense cost, taking its least damaging choice there."""
        limits = {**self.limits, **{m: min(t, self.limits.get(m, t)) for m, t in targets.items()}}
        dense = {m: self.knapsack.costs[m][np.searchsorted(self.layer, np.arange(len(self.names)))] for m in limits}
        for share in np.linspace(1, 0, SHARES):
            pick = np.array([self._least_damage(k, {m: share * dense[m][k] for m in limits}) for k in range(len(self.names))])
            if all(self.total(m, pick) <= limit for m, limit in limits.items()):
                return self.plan(pick)
        return None

    def total(self, metric: str, pick: NDArray[np.int64]) -> float:
        """Cost of the whole model with the choices ``pick`` (layers,)."""
        return float(getattr(self.costs.fixed, metric) + self.knapsack.total(metric, pick))

    def _least_damage(self, k: int, limits: Mapping[str, float]) -> int:
        """The layer's best choice within ``limits``; where none is, its cheapest."""
        members = np.flatnonzero(self.layer == k)
        over = sum(np.maximum(0, self.knapsack.costs[m][members] - limit) for m, limit in limits.items())
        fitting = members[over == 0] if np.any(over == 0) else members[[int(np.argmin(over))]]
        return int(fitting[self.damage[fitting].argmin()])

    def plan(self, pick: NDArray[np.int64]) -> Plan:
        return Plan({self.names[k]: self.choices[i][1] for k, i in enumerate(pick)})

    def terms(self, plan: Plan) -> NDArray[np.int64]:
        """Index of the choice of each layer in ``plan``, ``(layers,)``."""
        return np.array([self._index[name, plan[name]] for name in self.names])


def _enough(cost: float) -> str:
    """``cost`` as a limit that allows it: milliseconds are rounded up."""
    return f"{ceil(1e4 * cost) / 1e4:,.4f}" if isinstance(cost, float) else f"{cost:,}"
