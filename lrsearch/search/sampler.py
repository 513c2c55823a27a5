"""The default sampler: learns what the profile's predictions are off by, and tries what the front is expected to gain most from."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from lrsearch.search.candidates import Candidates
from lrsearch.search.learner import Learner, Observation
from lrsearch.search.records import CONTINUES, is_settled
from lrsearch.spec.plan import Plan

TRIED = 20  # of the best candidates, until one is a new plan


class LearnedSampler(BaseSampler):
    """Proposes the plan of the largest expected hypervolume improvement, as :class:`Learner` finds it.

    Args:
        candidates: draws plans.
        costs: the metrics among the objectives.
        observe: trial → what it tells, or None.
        plan_of: trial, of the search or a control's → its plan, or None.
        seed: makes the proposals repeatable, given the same trials.
    """

    def __init__(
        self, candidates: Candidates, costs: list[str], observe: Callable[[FrozenTrial], Observation | None],
        plan_of: Callable[[FrozenTrial], Plan | None], seed: int,
    ) -> None:
        self._candidates, self._costs, self._observe, self._plan_of, self._seed = candidates, costs, observe, plan_of, seed
        self._parameters, self._independent = candidates.parameters, RandomSampler(seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:  # noqa: ARG002
        """The whole space, fixed for the study."""
        return self._parameters.space

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        """Parameters outside the study's space, which a study of ours never has."""
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        """The parameters of the plan to try next; any, where all that are drawn were tried."""
        others = [t for t in study.get_trials(deepcopy=False) if t.number != trial.number and is_settled(t)]
        rng = np.random.default_rng([self._seed, len(others)])
        learner = Learner(self._candidates, self._costs, [o for o in map(self._observe, others) if o is not None])
        running = self._picks(t for t in others if t.state == TrialState.RUNNING and CONTINUES not in t.user_attrs)
        failed = self._picks(t for t in others if t.state == TrialState.FAIL)
        tried = {pick.tobytes() for pick in (*running, *failed, *(o.pick for o in learner.seen))}
        for candidate in learner.ranked(learner.draw(rng), running)[:TRIED]:
            values = self._candidates.parameters_of(candidate)
            plan = self._parameters.plan(values)
            if plan is not None and self._parameters.decoder.terms(plan).tobytes() not in tried:
                return values
        return {k: _uniform(d, rng) for k, d in search_space.items()}

    def _picks(self, trials: Iterable[FrozenTrial]) -> list[NDArray[np.int64]]:
        """``(layers,)`` choices of the plan of each of ``trials`` that has one."""
        return [self._parameters.decoder.terms(plan) for t in trials if (plan := self._plan_of(t)) is not None]


def _uniform(distribution: BaseDistribution, rng: np.random.Generator) -> float:
    assert isinstance(distribution, FloatDistribution)
    low, high, share = distribution.low, distribution.high, rng.random()
    return float(low * (high / low) ** share if distribution.log else low + share * (high - low))
