"""Sampler: what proposes a trial's parameters, and the registry of all samplers."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from lrsearch.spec.registry import Registry


class Sampler(ABC):
    """Makes a sampler of Optuna's for a study's parameters.

    Attributes:
        name: in ``search.sampler``.
        lasting: it is made once in a process, as it keeps state of its own. Else it is made anew for every trial, from a seed that
            follows from how many there are, so that a resumed study goes on as if it had never stopped.
        one_objective: it takes a single objective. It is then told, of each trial, log KL above what the profile predicts for a plan
            of its cost.
    """

    name: ClassVar[str]
    lasting: ClassVar[bool] = True
    one_objective: ClassVar[bool] = False

    @abstractmethod
    def make(self, seed: int, proposals: Any) -> Any:
        """An ``optuna.samplers.BaseSampler``.

        Args:
            seed: makes its proposals repeatable.
            proposals: the study's :class:`~lrsearch.search.proposals.Proposals`: parameters, decoder, what trials told.
        """


_HOME = "lrsearch.search.optuna_samplers"
SAMPLERS: Registry[Sampler] = Registry(
    "sampler", "lrsearch.samplers", base="lrsearch.extend.Sampler", register="lrsearch.extend.SAMPLERS.register", place="search.sampler",
    builtin={"learned": "lrsearch.search.proposals", **dict.fromkeys(("tpe", "nsga2", "gp", "cmaes", "random"), _HOME)},
)  # fmt: skip
