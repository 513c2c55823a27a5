"""The search space as Optuna sees it, and a sampler that learns the knapsack's weights from the trials."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from lrsearch.spec.space import FAMILIES

Floats = NDArray[np.float64]
SPREAD = 3.0


def distributions(layers: Sequence[str], targets: Mapping[str, tuple[float, float]]) -> dict[str, BaseDistribution]:
    """The parameters of a trial.

    ``layer/NAME`` and ``family/NAME`` are natural logarithms of factors on the profile's
    predicted damage; ``target/METRIC`` is the cost aimed at, as a ratio of dense.
    """
    space: dict[str, BaseDistribution] = {f"target/{m}": FloatDistribution(lo, hi, log=True) for m, (lo, hi) in targets.items()}
    space |= {f"family/{family}": FloatDistribution(-SPREAD, SPREAD) for family in FAMILIES[1:]}
    return space | {f"layer/{name}": FloatDistribution(-SPREAD, SPREAD) for name in layers}


@dataclass(frozen=True)
class Observation:
    """What one finished trial tells.

    Attributes:
        damage: ``(layers,)`` predicted KL of each layer's choice.
        family: ``(layers,)`` index of its family in ``FAMILIES``.
        log_kl: natural logarithm of the measured KL, in nats.
    """

    damage: Floats
    family: NDArray[np.int64]
    log_kl: float


class LearnedSampler(BaseSampler):
    """Learns how much each layer's and family's error really costs, and samples from what it knows.

    Model: log KL = a + log Σ_layers exp(θ_layer + φ_family) · damage, with Gaussian priors at the
    profile's own estimate (θ = φ = 0). Each proposal is one draw from the Laplace
    approximation of the posterior (Thompson sampling); the target cost fills the widest gap
    among the targets tried.

    Args:
        space: the distributions of a trial.
        observe: trial → what it tells, or None.
        seed: makes the proposals repeatable, given the same finished trials.
    """

    PRIOR, INTERCEPT, NOISE = 0.3, 1.0, 0.1

    def __init__(self, space: dict[str, BaseDistribution], observe: Callable[[FrozenTrial], Observation | None], seed: int) -> None:
        self._space, self._observe, self._seed = space, observe, seed
        self._independent = RandomSampler(seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:  # noqa: ARG002
        """The whole space, fixed for the study."""
        return self._space

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        """Parameters outside the study's space, which a study of ours never has."""
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        """One draw of all weights from the posterior, aimed at the widest gap among the targets."""
        rng = np.random.default_rng([self._seed, trial.number])
        finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        seen = [o for o in map(self._observe, finished) if o is not None]
        weights = [k for k in search_space if not k.startswith("target/")]
        draw = self._draw(seen, len(weights), rng)
        values = dict(zip(weights, np.clip(draw, -SPREAD, SPREAD).tolist(), strict=True))
        for key in (k for k in search_space if k.startswith("target/")):
            tried = [t.params[key] for t in finished if key in t.params]
            values[key] = _widest_gap(search_space[key], tried, rng)
        return {k: values[k] for k in search_space}

    def _draw(self, seen: list[Observation], size: int, rng: np.random.Generator) -> Floats:
        """One draw of (φ of the families after the first, θ of the layers)."""
        if not seen:
            return np.zeros(size)
        damage = np.stack([o.damage for o in seen])
        family = np.stack([o.family for o in seen])
        log_kl = np.array([o.log_kl for o in seen])
        families = len(FAMILIES) - 1
        precision = np.r_[np.full(size, self.PRIOR**-2), self.INTERCEPT**-2]
        x = np.zeros(size + 1)
        for _ in range(8):
            phi = np.r_[0.0, x[:families]]
            share = damage * np.exp(x[families:size] + phi[family]) + 1e-12
            total = share.sum(1, keepdims=True)
            share = share / total
            per_family = np.stack([(share * (family == f)).sum(1) for f in range(1, families + 1)], 1)
            jacobian = np.concatenate([per_family, share, np.ones((len(seen), 1))], 1)
            residual = log_kl - (x[size] + np.log(total[:, 0]))
            hessian = np.diag(precision) + jacobian.T @ jacobian / self.NOISE**2
            x = x + np.linalg.solve(hessian, jacobian.T @ residual / self.NOISE**2 - precision * x)
        root = np.linalg.cholesky(np.linalg.inv(hessian))
        return (x + root @ rng.standard_normal(size + 1))[:size]


def _widest_gap(distribution: BaseDistribution, tried: Sequence[float], rng: np.random.Generator) -> float:
    """A target inside the widest gap, in ratio, between those tried."""
    assert isinstance(distribution, FloatDistribution)
    low, high = distribution.low, distribution.high
    edges = np.log(np.unique(np.clip([low, high, *tried], low, high)))
    if len(edges) < 2:
        return high
    i = int(np.diff(edges).argmax())
    return float(np.clip(np.exp(rng.uniform(0.25, 0.75) * (edges[i + 1] - edges[i]) + edges[i]), low, high))


def build_sampler(
    name: str, space: dict[str, BaseDistribution], observe: Callable[[FrozenTrial], Observation | None], seed: int
) -> BaseSampler:
    """``learned``, or a stock Optuna sampler over the same parameters."""
    if name == "learned":
        return LearnedSampler(space, observe, seed)
    stock: dict[str, type[TPESampler] | type[RandomSampler] | type[NSGAIISampler]]
    stock = {"tpe": TPESampler, "random": RandomSampler, "nsga2": NSGAIISampler}
    return stock[name](seed=seed)
