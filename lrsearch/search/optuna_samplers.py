"""Optuna's own samplers over the parameters of a study."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from lrsearch.errors import ConfigError

Value = Callable[[FrozenTrial], float | None]


class Scalarised(BaseSampler):
    """A sampler of one objective, in a study of several: it works on a study of its own, in memory, which is told one value a trial.

    Trials that this object did not propose, such as those before a restart, are unknown to it.

    Args:
        inner: the sampler.
        space: parameter → distribution.
        value: finished trial → what to minimise, or None.
    """

    def __init__(self, inner: BaseSampler, space: dict[str, BaseDistribution], value: Value) -> None:
        self._own, self._space, self._value = optuna.create_study(sampler=inner), space, value
        self._asked: dict[int, Trial] = {}

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:  # noqa: ARG002
        """The whole space, fixed for the study."""
        return self._space

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        """Parameters outside the study's space, which a study of ours never has."""
        return self._own.sampler.sample_independent(study, trial, param_name, param_distribution)

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        """What the inner sampler asks for, after it was told of the trials that are finished."""
        for other in study.get_trials(deepcopy=False):
            if other.number in self._asked and other.state.is_finished():
                value = self._value(other)
                state = TrialState.FAIL if value is None else TrialState.COMPLETE
                self._own.tell(self._asked.pop(other.number), value, state=state)
        self._asked[trial.number] = self._own.ask(search_space)
        return self._asked[trial.number].params


def cmaes_sampler(seed: int) -> BaseSampler:
    """Of one objective alone.

    Raises:
        ConfigError: the package ``cmaes`` is not installed.
    """
    try:
        return CmaEsSampler(seed=seed)
    except ImportError as error:
        remedy = "pip install cmaes, or take another sampler."
        raise ConfigError("needs the package cmaes", value="cmaes", place="search.sampler", remedy=remedy) from error


def optuna_sampler(name: str, seeds: Sequence[int]) -> BaseSampler:
    """``tpe``, ``nsga2``, ``gp`` or ``random``, all of which keep their state in the trials alone."""
    kinds: dict[str, Callable[..., BaseSampler]]
    kinds = {"tpe": TPESampler, "nsga2": NSGAIISampler, "gp": GPSampler, "random": RandomSampler}
    return kinds[name](seed=int(np.random.SeedSequence(seeds).generate_state(1)[0]))
