"""Candidates: plans that are optimal for some weights of the knapsack, near the front and anywhere."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import FloatDistribution

from lrsearch.search.pairs import undominated
from lrsearch.search.parameters import ROUNDING, SPREAD, TARGET, KnapsackParameters
from lrsearch.spec.space import FAMILIES

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
PRICES, LOWEST_PRICE, HIGHEST_PRICE = 160, 1e-4, 1e3  # how many for each metric; nats of damage per cost of the dense model
PARENTS, CHILDREN, STRANGERS = 12, 24, 8  # members of the front that are varied, variations of each, and weights drawn afresh
STEP, MOVED = 0.5, 2.0  # standard deviation of a change of a log weight; how many weights change, on average
SPARSE_ALONE = 0.3  # share of the weights drawn afresh that hold every other family back
LEAST = 1e-6  # ratio of dense that a cost is taken for at least: a latency is dense less savings, and may be predicted below 0
NEARBY = 0.15  # standard deviation of the log price of a variation: it costs about what its parent costs


@dataclass(frozen=True)
class Candidate:
    """A choice per layer, and the weights for which it is optimal.

    Attributes:
        pick: ``(layers,)``.
        weights: ``(families - 1 + groups,)`` logarithms.
    """

    pick: Indices
    weights: Floats


class Candidates:
    """Lagrangian solutions of the knapsack (Shoham and Gersho 1988): each layer takes what is least in damage plus price times cost,
    which is optimal at the cost that comes out.

    Args:
        parameters: weigh the damage.
        limits: the most that each metric may cost in all, as a ratio of dense, budgets included.
        lowest: the least worth aiming at, of the metrics that have a target.
    """

    def __init__(self, parameters: KnapsackParameters, limits: dict[str, float], lowest: dict[str, float]) -> None:
        self.parameters, decoder = parameters, parameters.decoder
        self.metrics, dense = list(limits), decoder.costs.dense
        scale = [getattr(dense, m) or 1 for m in self.metrics]
        knapsack, self._scale = decoder.knapsack, dict(zip(self.metrics, scale, strict=True))
        costs = {m: knapsack.costs[m] for m in self.metrics}
        joint = knapsack.joint
        self._joint = joint.where(undominated(joint, decoder.layer, decoder.damage, parameters.family, costs, knapsack.pairs))
        self.costs = np.stack([self._joint.costs[m] / s for m, s in self._scale.items()], 1)
        self.fixed = np.array([getattr(decoder.costs.fixed, m) / s for m, s in zip(self.metrics, scale, strict=True)])
        self.highest = np.array([limits[m] for m in self.metrics])
        self.lowest = np.array([lowest.get(m, 0.0) for m in self.metrics])
        self._spans = {
            k: (d.low, d.high) for k, d in parameters.space.items() if isinstance(d, FloatDistribution) and k.startswith(TARGET)
        }
        sizes = np.bincount(self._joint.slot)
        starts = np.r_[0, sizes.cumsum()[:-1]]
        self._choices = starts[:, None] + np.minimum(np.arange(sizes.max()), sizes[:, None] - 1)

    def total(self, picks: Indices) -> Floats:
        """``(n, metrics)`` cost of ``picks`` (n, layers) as ratios of dense."""
        knapsack = self.parameters.decoder.knapsack
        total: Floats = np.stack([knapsack.total(m, picks) / s for m, s in self._scale.items()], -1) + self.fixed
        return total

    def draw(self, front: Sequence[Candidate], rng: np.random.Generator) -> list[Candidate]:
        """Plans within limits and targets, each once: of the profile's own weights, of such that differ from those of members of
        ``front`` in few places, and of strangers."""
        size = len(self.parameters.names)
        own, sparse = np.zeros(size), np.r_[np.full(len(FAMILIES) - 1, SPREAD), np.zeros(size - len(FAMILIES) + 1)]
        strangers = [rng.normal(0, STEP, size) + (rng.random() < SPARSE_ALONE) * sparse for _ in range(STRANGERS)]
        everywhere = [np.clip(weights, -SPREAD, SPREAD) for weights in (own, sparse, *strangers)]
        found = [self._decoded(weights, rng) for weights in everywhere]
        found += [c for weights in everywhere for c in self._priced(weights, self._prices(rng))]
        for parent in (front[i] for i in rng.permutation(len(front))[:PARENTS]):
            price = self._price(parent, rng)
            for _ in range(CHILDREN):
                moved = rng.random(size) < MOVED / len(self.parameters.groups)
                child = np.clip(parent.weights + moved * rng.normal(0, STEP, size), -SPREAD, SPREAD)
                found += self._priced(child, price * np.exp(rng.normal(0, NEARBY, (2, 1))))
        return list({c.pick.tobytes(): c for c in found}.values())

    def _prices(self, rng: np.random.Generator) -> Floats:
        """``(prices, metrics)`` nats for the cost of a whole dense model."""
        number = PRICES * len(self.metrics)
        mix = rng.dirichlet(np.ones(len(self.metrics)), number)
        prices: Floats = np.geomspace(LOWEST_PRICE, HIGHEST_PRICE, number)[:, None] * mix
        return prices

    def _price(self, parent: Candidate, rng: np.random.Generator) -> Floats:
        """The price, of those that are tried, at which the parent's weights lead to what it costs most nearly."""
        prices = self._prices(rng)
        solved, own = (np.maximum(self.total(picks), LEAST) for picks in (self._solve(parent.weights, prices), parent.pick[None]))
        apart = np.log(solved / own)
        nearest: Floats = prices[np.abs(apart).sum(1).argmin()]
        return nearest

    def _priced(self, weights: Floats, prices: Floats) -> list[Candidate]:
        picks = self._solve(weights, prices)
        return [Candidate(pick, weights) for pick in np.unique(picks[self._inside(picks)], axis=0)]

    def _decoded(self, weights: Floats, rng: np.random.Generator) -> Candidate:
        """The plan at targets drawn at random, which there is under any budgets that can be met; it may fall short of them."""
        aims = {k: float(np.exp(rng.uniform(np.log(low), np.log(high)))) for k, (low, high) in self._spans.items()}
        plan = self.parameters.plan(aims | dict(zip(self.parameters.names, weights.tolist(), strict=True)))
        assert plan is not None, "budgets are checked before a study starts"
        return Candidate(self.parameters.decoder.terms(plan), weights)

    def _inside(self, picks: Indices) -> NDArray[np.bool_]:
        """Which of ``picks`` are within limits and targets."""
        total = self.total(picks)
        inside = (total <= self.highest * (1 + ROUNDING)) & (total >= self.lowest)
        return np.asarray(inside.all(1))

    def _solve(self, weights: Floats, prices: Floats) -> Indices:
        """``(prices, layers)`` the choice of least damage plus price times cost of each layer."""
        priced = self._joint.summed(self.parameters.damage(weights)) + prices @ self.costs.T
        best = priced[:, self._choices].argmin(2)
        solved: Indices = np.take_along_axis(self._choices[None], best[..., None], 2)[..., 0]
        return self._joint.picks(solved, self.parameters.decoder.layer)

    def parameters_of(self, candidate: Candidate) -> dict[str, float]:
        """The parameters of a trial that lead to ``candidate``."""
        costs = dict(zip(self.metrics, self.total(candidate.pick[None])[0], strict=True))
        named = dict(zip(self.parameters.names, candidate.weights.tolist(), strict=True))
        aims = {k: costs[k.removeprefix(TARGET)] * (1 + ROUNDING) for k in self._spans}
        return {k: float(np.clip(aims[k], *span)) for k, span in self._spans.items()} | named
