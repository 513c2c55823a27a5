"""Proposals: a trial's source and parameters → a plan, and back to what a sampler learns from."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, Trial

from lrsearch.search.candidates import Candidates
from lrsearch.search.controls import CONTROLS, control_plan, ladder
from lrsearch.search.decoder import Decoder
from lrsearch.search.learner import Observation
from lrsearch.search.optuna_samplers import Scalarised, checked, trial_seed
from lrsearch.search.parameters import PARAMETERS, TARGET, KnapsackParameters
from lrsearch.search.records import DENSE, PLAN, SEARCH, Record, parameters_of
from lrsearch.search.sampler import LearnedSampler
from lrsearch.spec.config import SearchConfig
from lrsearch.spec.plan import Plan
from lrsearch.spec.registry import resolve
from lrsearch.spec.samplers import SAMPLERS, Sampler
from lrsearch.spec.score import KL_FLOOR

LADDER = 25  # knapsack plans of the profile's own front, evenly spaced in cost ratio
LOWEST, BELOW = 0.1, 0.5  # the smallest cost aimed at: a ratio of dense, and of a limit where there is one
REACHED = 1.001  # times the smallest cost that a plan has: no target is below, as rounding could then put it out of reach
ExampleLosses = Callable[[int], NDArray[np.float64] | None]


@SAMPLERS.register
class Learned(Sampler):
    """The default; see :mod:`lrsearch.search.sampler`."""

    name = "learned"

    def make(self, seed: int, proposals: "Proposals") -> BaseSampler:
        assert isinstance(proposals.parameters, KnapsackParameters), "the configuration says so"
        candidates, costs = proposals.candidates(proposals.parameters), list(proposals.targets)
        return LearnedSampler(candidates, costs, proposals.observe, proposals.plan_of, seed)


class Proposals:
    """What plans a study may propose: every one meets every budget.

    Args:
        decoder: solves the knapsack.
        costs: the metrics among the objectives; each has a target, as a ratio of dense.
        config: sampler, parameters, the lowest target, and how many targets each control has.
        losses: number of a plan → its KL on each score example at rung 0, ``(examples,)``, if it was kept.
        sampler: asked instead of the one that ``config`` names.

    Attributes:
        dense: metric → cost of the dense model.
        targets: metric → lowest and highest ratio worth aiming at.
        parameters: what a trial's parameters mean.
        space: parameter → distribution.
    """

    def __init__(
        self, decoder: Decoder, costs: Sequence[str], config: SearchConfig, losses: ExampleLosses | None = None,
        sampler: BaseSampler | None = None,
    ) -> None:
        self.decoder, self.config, self._losses, self._lasting = decoder, config, losses, sampler
        self._observed: dict[int, Observation | None] = {}
        self.dense: dict[str, float] = {m: getattr(decoder.costs.dense, m) for m in costs}
        self.targets = {m: self._span(m) for m in costs}
        self.parameters = PARAMETERS[config.parameters](decoder, self.targets, config.groups)
        self.space = self.parameters.space

    def _span(self, metric: str) -> tuple[float, float]:
        dense, largest = self.dense[metric], getattr(self.decoder.costs(Plan()), metric)
        high = min(largest, self.decoder.limits.get(metric, largest)) / dense
        lowest = self.config.lowest or (BELOW * high if metric in self.decoder.limits else LOWEST)
        return min(high, max(lowest, REACHED * self.decoder.smallest(metric) / dense)), high

    def controls(self) -> list[tuple[str, dict[str, float]]]:
        """(source, parameters) of the dense model and of every control at every target."""
        ladders = [ladder(low, high, self.config.control_points) for low, high in self.targets.values()]
        rungs = [dict(zip(self.targets, rung, strict=True)) for rung in zip(*ladders, strict=True)]
        top = {m: high for m, (_, high) in self.targets.items()}
        pairs = [(DENSE, top), *((control, rung) for rung in rungs for control in CONTROLS)]
        return [(source, self._parameters(source, rung)) for source, rung in pairs]

    def _parameters(self, source: str, targets: Mapping[str, float]) -> dict[str, float]:
        aims = {TARGET + m: target for m, target in targets.items()}
        return aims | self.parameters.of(self.plan(source, aims))

    def plan(self, source: str, parameters: Mapping[str, float]) -> Plan | None:
        """Decode a trial; None if its source cannot reach the targets."""
        decoder = self.decoder
        if source == DENSE:
            fits = all(getattr(decoder.costs(Plan()), m) <= limit for m, limit in decoder.limits.items())
            return Plan() if fits else None
        if source in CONTROLS:
            return control_plan(decoder, source, self.parameters.limits(parameters))
        return self.parameters.plan(parameters)

    def plan_of(self, trial: FrozenTrial | Trial) -> Plan | None:
        """The plan that is stored with a trial, or else what its source and parameters mean; None if there is none, or none yet."""
        if PLAN in trial.user_attrs:
            return Plan.from_dict(trial.user_attrs[PLAN])
        parameters = trial.params if isinstance(trial, Trial) else parameters_of(trial)
        return self.plan(trial.user_attrs.get("source", SEARCH), parameters) if parameters.keys() == self.space.keys() else None

    def sampler(self, trials: int) -> BaseSampler:
        """The sampler after so many ``trials``, which its seed depends on: a resumed study goes on as if it had never stopped.

        Raises:
            ConfigError: it needs a package that is not installed.
        """
        name = self.config.sampler
        if self._lasting is None and ":" not in name and not SAMPLERS[name].lasting:
            return self._made(SAMPLERS[name], trial_seed(self.config.seed, trials))
        if self._lasting is None and ":" in name:
            self._lasting = checked(resolve(name, "search.sampler")(seed=trial_seed(self.config.seed, trials)), name)
        elif self._lasting is None:
            self._lasting = self._made(SAMPLERS[name], self.config.seed)
        return self._lasting

    def _made(self, sampler: Sampler, seed: int) -> BaseSampler:
        made = checked(sampler.make(seed, self), sampler.name)
        return Scalarised(made, self.space, self.excess) if sampler.one_objective else made

    def candidates(self, parameters: KnapsackParameters) -> Candidates:
        """Draws plans within budgets and targets."""
        dense = self.decoder.costs.dense
        limits = {m: limit / (getattr(dense, m) or 1) for m, limit in self.decoder.limits.items()}
        limits |= {m: high for m, (_, high) in self.targets.items()}
        return Candidates(parameters, limits, {m: low for m, (low, _) in self.targets.items()})

    def observe(self, trial: FrozenTrial) -> Observation | None:
        """What a finished trial says about its plan, from rung 0; read once, as a finished trial stays as it is."""
        if trial.number not in self._observed and (record := Record.of(trial)):
            self._observed[trial.number] = self._observation(trial, record)
        return self._observed.get(trial.number)

    def _observation(self, trial: FrozenTrial, record: Record) -> Observation | None:
        if record.number != trial.number or record.twin is not None:
            return None
        known = isinstance(self.parameters, KnapsackParameters) and record.source in (SEARCH, "knapsack")
        weights = np.array([trial.params[name] for name in self.parameters.names]) if known else None
        score = record.scores[0]
        kl, losses = max(score.divergence, KL_FLOOR), self._losses(record.number) if self._losses else None
        return Observation(self.decoder.terms(record.plan), float(np.log(kl)), weights, score.divergence_stderr / kl, losses)

    def excess(self, trial: FrozenTrial) -> float | None:
        """log KL of a finished trial, above the profile's own prediction for the knapsack at the same first cost."""
        seen = self.observe(trial)
        if seen is None:
            return None
        cost = self.decoder.total(next(iter(self.targets)), seen.pick)
        return seen.log_kl - float(np.interp(cost, *self._ladder))

    @cached_property
    def _ladder(self) -> tuple[list[float], list[float]]:
        """Costs, ascending, and log predicted damage of the knapsack's plans."""
        metric, (low, high) = next(iter(self.targets.items()))
        plans = [control_plan(self.decoder, "knapsack", {metric: t * self.dense[metric]}) for t in reversed(ladder(low, high, LADDER))]
        found = [plan for plan in plans if plan is not None]
        damage = [self.decoder.damage[self.decoder.terms(plan)].sum() for plan in found]
        return [getattr(self.decoder.costs(plan), metric) for plan in found], np.log(np.maximum(damage, KL_FLOOR)).tolist()
