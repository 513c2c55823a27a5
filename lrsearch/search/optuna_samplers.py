"""Optuna's own samplers over the parameters of a study."""

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from lrsearch.errors import ConfigError
from lrsearch.spec.samplers import SAMPLERS, Sampler

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


class _OptunaDefault(Sampler):
    """One that keeps its state in the trials alone."""

    lasting = False
    kind: ClassVar[Callable[..., BaseSampler]]

    def make(self, seed: int, proposals: Any) -> BaseSampler:  # noqa: ARG002
        return type(self).kind(seed=seed)


@SAMPLERS.register
class Tpe(_OptunaDefault):
    """Tree-structured Parzen estimators."""

    name, kind = "tpe", TPESampler


@SAMPLERS.register
class Nsga2(_OptunaDefault):
    """A genetic algorithm."""

    name, kind = "nsga2", NSGAIISampler


@SAMPLERS.register
class Gp(_OptunaDefault):
    """Gaussian processes."""

    name, kind = "gp", GPSampler


@SAMPLERS.register
class Random(_OptunaDefault):
    """Uniform."""

    name, kind = "random", RandomSampler


@SAMPLERS.register
class Cmaes(Sampler):
    """CMA-ES."""

    name, one_objective = "cmaes", True

    def make(self, seed: int, proposals: Any) -> BaseSampler:  # noqa: ARG002
        return cmaes_sampler(seed)


OptunaSampler = BaseSampler


def sampler_in(settings: dict[str, Any]) -> tuple[dict[str, Any], OptunaSampler | None]:
    """Take a sampler of Optuna's out of a study's ``settings``, whose ``search.sampler`` then says of which class it is."""
    search = settings.get("search")
    sampler = search.get("sampler") if isinstance(search, dict) else None
    if not isinstance(sampler, BaseSampler):
        return settings, None
    kind = f"{type(sampler).__module__}:{type(sampler).__qualname__.replace('<locals>.', '')}"
    return {**settings, "search": {**settings["search"], "sampler": kind}}, sampler


def trial_seed(seed: int, trials: int) -> int:
    """A seed for the next trial after so many."""
    return int(np.random.SeedSequence([seed, trials]).generate_state(1)[0])


def checked(made: Any, name: str) -> BaseSampler:
    """``made``, if it is a sampler.

    Raises:
        ConfigError: it is not.
    """
    if not isinstance(made, BaseSampler):
        remedy = "Return an optuna.samplers.BaseSampler."
        raise ConfigError(f"{name} must make a sampler of Optuna's", value=type(made).__name__, place="search.sampler", remedy=remedy)
    return made
