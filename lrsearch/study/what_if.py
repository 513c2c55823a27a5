"""Answers to "what if": the best plan known within other budgets, and what one not yet tried is expected to reach."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from optuna.distributions import BaseDistribution, FloatDistribution

from lrsearch.errors import ConfigError
from lrsearch.search.acquisition import expected_gain
from lrsearch.search.decoder import Decoder
from lrsearch.search.learner import Learner
from lrsearch.search.parameters import KnapsackParameters
from lrsearch.search.proposals import Proposals
from lrsearch.search.records import DENSE, PLAN, Record, merged
from lrsearch.spec.config import StudyConfig
from lrsearch.spec.cost import Budget, Cost
from lrsearch.spec.html_table import html_table
from lrsearch.spec.plan import Plan
from lrsearch.spec.score import KL_FLOOR
from lrsearch.spec.units import divergence_name
from lrsearch.study import space_file
from lrsearch.study.losses import Losses
from lrsearch.study.recovered import unit_of
from lrsearch.study.study_folder import StudyFolder
from lrsearch.study.trials import open_storage

DEVIATIONS = 1.96  # standard deviations of a normal distribution that hold 95 %
Space = Mapping[str, BaseDistribution]


@dataclass(frozen=True)
class Untried:
    """A plan that was not tried, as the search predicts it, before any finetuning.

    Attributes:
        cost: exact, but for a latency.
        divergence: median of the predicted divergence, in the unit of the task.
        interval: within which it is expected with a probability of 95 %.
        parameters: of the trial that tries it; the plan is stored with them.
    """

    plan: Plan
    cost: Cost
    divergence: float
    interval: tuple[float, float]
    parameters: dict[str, float]

    @property
    def kl(self) -> float:
        """The former name of :attr:`divergence`."""
        return self.divergence


@dataclass(frozen=True)
class Answer:
    """What a study knows about a budget.

    Attributes:
        known: the plan of lowest divergence before finetuning that meets it, among those tried.
        best: the best score of a finished plan that meets it; the same plan where there is no finetuning.
        untried: the plan that is expected to improve on ``known`` most.
        dense: the dense model's cost.
        unit: of the divergence.
    """

    known: Record | None
    best: Record | None
    untried: Untried | None
    dense: Cost
    unit: str = ""

    def lines(self, metrics: Sequence[str] = ("params", "weight_bytes", "macs")) -> dict[str, str]:
        """What is known and what is predicted, a line each, with the costs in ``metrics``."""
        found = {"best known": self._known(metrics)}
        if self.known is not None and self.known != self.best:
            found["before finetuning"] = f"trial {self.known.number}, {divergence_name(self.unit)} {self.known.scores[0].divergence:.4f}"
        return {**found, "not yet tried": self._predicted(metrics)}

    def _known(self, metrics: Sequence[str]) -> str:
        if self.best is None:
            return "none within these budgets"
        score, metric = self.best.score, "" if self.best.score.metric is None else f"metric {self.best.score.metric:.2%}, "
        known = f"trial {self.best.number} ({self.best.source}), {divergence_name(self.unit)} {score.divergence:.4f}"
        return f"{known}, {metric}{self._costs(self.best.cost, metrics)}"

    def _predicted(self, metrics: Sequence[str]) -> str:
        if self.untried is None:
            return "no other plan found"
        low, high = self.untried.interval
        costs = self._costs(self.untried.cost, metrics)
        return f"{divergence_name(self.unit)} {self.untried.divergence:.4f} ({low:.4f} to {high:.4f} with 95 %) before finetuning, {costs}"

    def _costs(self, cost: Cost, metrics: Sequence[str]) -> str:
        """Costs with their ratios of dense."""
        triples = [(m, getattr(cost, m), getattr(self.dense, m)) for m in metrics]
        return ", ".join(f"{m} {v:,.{3 if isinstance(v, float) else 0}f}" + (f" ({v / d:.1%})" if d else "") for m, v, d in triples)

    def __repr__(self) -> str:
        return "\n".join(f"{name}: {text}" for name, text in self.lines().items())

    def _repr_html_(self) -> str:
        return html_table(("", "within these budgets"), self.lines().items())


def ask(folder: Path, config: StudyConfig, budget: Budget, queue: bool = False) -> Answer:
    """Answer from what is in the study folder alone; model and data are not looked at.

    Args:
        folder: the study.
        config: of the study.
        budget: upper limits, besides the study's own.
        queue: let the search try :attr:`Answer.untried` next, whether it runs now or later.

    Raises:
        StudyError: the folder holds no study, or a damaged one.
        BudgetError: no plan meets the budget.
        ConfigError: the study's parameters are not the knapsack's.
    """
    if config.search.parameters != "knapsack":
        rule, remedy = "must be knapsack for predictions", "Search with the knapsack's weights."
        raise ConfigError(rule, value="direct", place="search.parameters", remedy=remedy)
    study_folder = StudyFolder(folder)
    study, decoder = open_storage(study_folder), space_file.load(study_folder)
    space = Proposals(decoder, config.objectives[1:], config.search).space
    decoder = _narrowed(decoder, budget)
    trials, losses = study.get_trials(deepcopy=False), Losses(study_folder)
    losses.hear(trials)
    proposals = Proposals(decoder, config.objectives[1:], config.search, losses.before_training(config.objectives))
    records = [r for r in merged(r for r in map(Record.of, trials) if r) if _meets(r.cost, decoder)]
    known = min(records, key=lambda r: r.scores[0].divergence, default=None)
    best = min((r for r in records if r.complete), key=lambda r: _quality(r, config.objectives[0]), default=None)
    seen = [o for o in map(proposals.observe, trials) if o is not None]
    assert isinstance(proposals.parameters, KnapsackParameters), "checked above"
    learner = Learner(proposals.candidates(proposals.parameters), list(proposals.targets), seen)
    untried = _untried(learner, proposals, known, config.search.seed, space)
    if queue and untried:
        study.enqueue_trial(untried.parameters, user_attrs={PLAN: untried.plan.to_dict()})  # they may mean another within other budgets
    return Answer(known, best, untried, decoder.costs.dense, unit_of(study_folder, study.user_attrs.get(DENSE, {})))


def _narrowed(decoder: Decoder, budget: Budget) -> Decoder:
    """``decoder`` within ``budget`` too."""
    asked = budget.resolve(decoder.costs.dense)
    decoder.limits.update({m: min(limit, decoder.limits.get(m, limit)) for m, limit in asked.items()})
    decoder.refuse_unreachable(budget)
    return decoder


def _meets(cost: Cost, decoder: Decoder) -> bool:
    return all(getattr(cost, m) <= limit for m, limit in decoder.limits.items())


def _quality(record: Record, objective: str) -> float:
    return record.score.divergence if objective == "divergence" else -record.score.quality


def _untried(learner: Learner, proposals: Proposals, known: Record | None, seed: int, space: Space) -> Untried | None:
    """The candidate of the largest expected improvement on the divergence of ``known``, its parameters within the study's own ``space``."""
    tried = {o.pick.tobytes() for o in learner.seen}
    found = [c for c in learner.draw(np.random.default_rng([seed, len(tried)])) if c.pick.tobytes() not in tried]
    if not found:
        return None
    picks = np.stack([c.pick for c in found])
    mean, stderr = learner.predict(picks)
    reference = np.array([np.log(max(known.scores[0].divergence, KL_FLOOR)) if known else mean.max()])
    best = int(expected_gain(mean, stderr, np.empty((len(found), 0)), np.empty((0, 1)), reference).argmax())
    plan = proposals.decoder.plan(picks[best])
    low, middle, high = (float(np.exp(mean[best] + d * stderr[best])) for d in (-DEVIATIONS, 0, DEVIATIONS))
    parameters = {k: _within(v, space[k]) for k, v in learner.candidates.parameters_of(found[best]).items()}
    return Untried(plan, proposals.decoder.costs(plan), middle, (low, high), parameters)


def _within(value: float, distribution: BaseDistribution) -> float:
    assert isinstance(distribution, FloatDistribution), "all parameters are numbers"
    return float(np.clip(value, distribution.low, distribution.high))
