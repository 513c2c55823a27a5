"""Proposals: a trial's source and parameters → a plan, and back to what the sampler learns from."""

from collections.abc import Mapping, Sequence

import numpy as np
from optuna.trial import FrozenTrial

from lrsearch.search.controls import CONTROLS, control_plan, ladder
from lrsearch.search.decoder import Decoder
from lrsearch.search.records import DENSE, Record
from lrsearch.search.sampler import Observation, distributions
from lrsearch.spec.config import SearchConfig
from lrsearch.spec.plan import Plan
from lrsearch.spec.space import FAMILIES

KL_FLOOR = 1e-5


class Proposals:
    """What plans a study may propose: every one meets every budget.

    Args:
        decoder: solves the knapsack.
        costs: the metrics among the objectives; each has a target, as a ratio of dense.
        config: the lowest target, and how many targets each control has.

    Attributes:
        dense: metric → cost of the dense model.
        targets: metric → lowest and highest ratio worth aiming at.
        space: parameter → distribution.
    """

    def __init__(self, decoder: Decoder, costs: Sequence[str], config: SearchConfig) -> None:
        self.decoder, self.config = decoder, config
        self.dense: dict[str, float] = {m: getattr(decoder.costs.dense, m) for m in costs}
        self.targets = {m: self._span(m) for m in costs}
        self.space = distributions(decoder.names, self.targets)

    def _span(self, metric: str) -> tuple[float, float]:
        dense, largest = self.dense[metric], getattr(self.decoder.costs(Plan()), metric)
        high = min(largest, self.decoder.limits.get(metric, largest)) / dense
        return min(high, max(self.config.lowest, 1.001 * self.decoder.smallest(metric) / dense)), high

    def controls(self) -> list[tuple[str, dict[str, float]]]:
        """(source, parameters) of the dense model and of every control at every target."""
        ladders = [ladder(low, high, self.config.control_points) for low, high in self.targets.values()]
        rungs = [dict(zip(self.targets, rung, strict=True)) for rung in zip(*ladders, strict=True)]
        top = {m: high for m, (_, high) in self.targets.items()}
        pairs = [(DENSE, top), *((control, rung) for rung in rungs for control in CONTROLS)]
        return [(source, self.parameters(rung)) for source, rung in pairs]

    def parameters(self, targets: Mapping[str, float]) -> dict[str, float]:
        """The parameters that aim at ``targets`` with the profile's own damage."""
        return {k: targets[k.removeprefix("target/")] if k.startswith("target/") else 0.0 for k in self.space}

    def plan(self, source: str, parameters: Mapping[str, float]) -> Plan | None:
        """Decode a trial; None if its source cannot reach the targets."""
        decoder = self.decoder
        targets = {m: parameters[f"target/{m}"] * self.dense[m] for m in self.targets}
        if source == DENSE:
            fits = all(getattr(decoder.costs(Plan()), m) <= limit for m, limit in decoder.limits.items())
            return Plan() if fits else None
        if source in CONTROLS:
            return control_plan(decoder, source, targets)
        family = np.array([parameters.get(f"family/{f}", 0.0) for f in decoder.families])
        layer = np.array([parameters[f"layer/{n}"] for n in decoder.names])[decoder.layer]
        damage = decoder.damage * np.exp(family + layer)
        return decoder.solve(damage, targets) or decoder.solve(damage, {})

    def observe(self, trial: FrozenTrial) -> Observation | None:
        """What a finished trial says about the damage of its plan, from rung 0."""
        record = Record.of(trial)
        if record is None or record.number != trial.number or record.scores[0].kl < KL_FLOOR:
            return None
        picked = self.decoder.terms(record.plan)
        families = [*FAMILIES, "dense"]
        family = np.array([families.index(f) % len(FAMILIES) for f in self.decoder.families[picked]])
        return Observation(self.decoder.damage[picked], family, float(np.log(record.scores[0].kl)))
