"""A study's latencies: a table that is at hand, or measured now, and what it says of plans."""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from filelock import FileLock
from torch import Tensor, nn

from lrsearch.errors import LatencyError
from lrsearch.latency.runner import cpu
from lrsearch.latency.survey import Survey, timed
from lrsearch.latency.table import LatencyTable
from lrsearch.latency.whole_models import Menus, corrected
from lrsearch.search.decoder import Decoder
from lrsearch.search.records import Record
from lrsearch.spec.atomic import read_json
from lrsearch.spec.cache import cache_folder
from lrsearch.spec.config import LatencyConfig, StudyConfig
from lrsearch.spec.cost import Budget, Cost
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.plan import LayerPlan, Plan
from lrsearch.spec.progress import Progress
from lrsearch.spec.space import Space
from lrsearch.study.study_folder import StudyFolder

log = logging.getLogger("lrsearch")

NEAR = (1.0, 0.97, 0.94, 0.91)  # shares of the limit: plans predicted there are measured first
AS_FAST = 0.01  # share of the time: a larger rank that takes no more than that longer counts as on the same stair
MOST_TIMED = 8  # models of a front that are timed together, interleaved
LEAST_MS = 1e-9  # no clock tells less


@dataclass(frozen=True)
class Timed:
    """A model's latency table, with what is needed to ask it about plans, and the study's budget."""

    survey: Survey
    table: LatencyTable
    budget: Budget = Budget()  # noqa: RUF009  frozen

    def layers(self, menus: Menus) -> dict[str, dict[LayerPlan, float]]:
        """Layer name → choice → milliseconds."""
        return self.table.layers(self.survey.calls, menus)

    def merged(self, plan: Plan) -> list[str]:
        """Names of the layers that run fastest as one dense layer."""
        return self.survey.merged(self.table, plan)

    @property
    def here(self) -> bool:
        """Whether the table is of this machine, so that whole models can be measured beside it."""
        return self.table.conditions.cpu == cpu()

    def time_front(self, plans: Mapping[int, Plan], folder: StudyFolder, progress: Progress) -> bool:
        """Measure whole models, a few at a time, the dense one beside them, but those that were; keeps for each trial what was found:
        ``ms``, ``dense_ms`` and, where the study limits latency, ``verified``: whether the limits hold.

        Args:
            plans: trial → plan, along the front; all of them where latency is limited, else ``MOST_TIMED`` evenly chosen.
            folder: of the study.

        Returns:
            Whether some of ``plans`` are over the limits.
        """
        known = measured_whole(folder)
        most = len(plans) if self.limited else MOST_TIMED
        chosen = {round(i) for i in np.linspace(0, len(plans) - 1, min(len(plans), most))}
        due = {str(trial): plan for i, (trial, plan) in enumerate(plans.items()) if i in chosen and str(trial) not in known}
        trials = list(due)
        for part in (trials[i : i + MOST_TIMED] for i in range(0, len(trials), MOST_TIMED)):
            known |= zip(part, self._time([due[trial] for trial in part], progress), strict=True)
            folder.save(folder.measured_front, known)
        if refused := [trial for trial in plans if known.get(str(trial), {}).get("verified") is False]:
            progress.note(f"trials {', '.join(map(str, refused))} leave the front: measured whole, they are over the latency budget")
        return bool(refused)

    @property
    def limited(self) -> bool:
        """Whether the study has a budget of latency."""
        return self.budget.latency_ms is not None or self.budget.latency_ratio is not None

    def keep_distance(self, decoder: Decoder, folder: StudyFolder, progress: Progress) -> None:
        """Lower the decoder's limit of latency, if below dense, by how late plans near it may be, where that leaves a plan.

        That is how late those are that are predicted to lose least, measured once for a study: what whole models save beyond their
        layers differs from layer to layer. Added is what the probes strayed, as a search tries many plans and so finds those that the
        table flatters. With a table of another machine, it is what the probes strayed there.
        """
        if not self.limited or decoder.limits["latency_ms"] >= self.table.dense_ms:
            return
        late: Any = read_json(folder.lateness).get("late")
        if not _plausible(late, 0.0):
            late = self.table.stray + (self._late(decoder, progress) if self.here else 0.0)
            folder.save(folder.lateness, {"late": late})
        lower = {"latency_ms": decoder.limits["latency_ms"] / (1 + late)}
        if decoder.solve(decoder.damage, lower):
            decoder.limits.update(lower)

    def _late(self, decoder: Decoder, progress: Progress) -> float:
        """By how much more of the dense model's latency whole models take than predicted, as a share: the most of a few, or 0."""
        limit = decoder.limits["latency_ms"]
        solved = [decoder.solve(decoder.damage, {"latency_ms": share * limit}) for share in NEAR]
        plans = list({plan.fingerprint: plan for plan in solved if plan}.values())
        found = self._time(plans, progress)
        predicted = [decoder.costs(plan).latency_ms / self.table.dense_ms for plan in plans]
        return max(0.0, *(f["ms"] / f["dense_ms"] / p - 1 for f, p in zip(found, predicted, strict=True)))

    def _time(self, plans: Sequence[Plan], progress: Progress) -> list[dict[str, float]]:
        """What was found of each; see :meth:`time_front`."""
        progress.stage("Building", len(plans) + 1)
        conditions = self.table.conditions
        models = (self.survey.runners(plan, self.merged(plan), conditions) for plan in (Plan(), *plans))
        dense, *times = [t.ms for t in timed(models, conditions.threads, progress.stage, progress.advance)]
        return [self._found(ms if plan.layers else dense, dense) for plan, ms in zip(plans, times, strict=True)]

    def _found(self, ms: float, dense: float) -> dict[str, float]:
        found = {"ms": ms, "dense_ms": dense}
        return {**found, "verified": ms <= self.budget.resolve(Cost(latency_ms=dense))["latency_ms"]} if self.limited else found

    def on_stairs(self, space: Space, menus: Menus) -> dict[str, list[LayerPlan]]:
        """``menus`` without the ranks, under a rule with ``rank_multiple: auto``, beside which larger ones take as long, and without
        the choices that layers leave to those they feed."""
        menus = self.survey.led(menus)
        auto = {name for name in menus if (rule := space.rule(name)) and rule.rank_multiple == "auto"}
        alone = replace(self, table=replace(self.table, scale=1.0))
        latency = alone.layers({name: menus[name] for name in auto})
        return {n: largest_of_step(menu, latency[n]) if n in auto else list(menu) for n, menu in menus.items()}


def measured_whole(folder: StudyFolder) -> dict[str, dict[str, float]]:
    """Trial → what :meth:`Timed.time_front` found of it in the study in ``folder``."""
    return {trial: found for trial, found in read_json(folder.measured_front).items() if _measured(found)}


def _measured(found: object) -> bool:
    """Whether that is what :meth:`Timed.time_front` writes of a trial; what is not is measured again."""
    return isinstance(found, dict) and all(_plausible(found.get(key), LEAST_MS) for key in ("ms", "dense_ms"))


def _plausible(value: object, least: float) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value >= least


def over_budget(records: Iterable[Record], folder: StudyFolder) -> set[int]:
    """Trials whose plans were measured whole and are over the study's latency budget."""
    over = {int(trial) for trial, found in measured_whole(folder).items() if trial.isdigit() and found.get("verified") is False}
    return {r.number for r in records if r.number in over or r.twin in over}


def largest_of_step(menu: Sequence[LayerPlan], ms: Mapping[LayerPlan, float]) -> list[LayerPlan]:
    """The choices but those with a sibling of higher rank that takes no longer, to within 1 %.

    Choices that run as a dense layer whatever their rank stay: they save values, not time.
    """
    def better(other: LayerPlan, plan: LayerPlan) -> bool:
        siblings = (other.format, other.density, other.pattern) == (plan.format, plan.density, plan.pattern)
        return siblings and _above(other.rank, plan.rank) and ms[other] <= (1 + AS_FAST) * ms[plan]

    return [p for p in menu if p.executed.untouched or not any(better(other, p) for other in menu)]


def _above(rank: Sequence[int], other: Sequence[int]) -> bool:
    return rank != other and all(a >= b for a, b in zip(rank, other, strict=True))


def open_timed(
    model: nn.Module, layers: Sequence[LayerSpec], menus: Menus, sample: Tensor, config: StudyConfig, folder: StudyFolder | None,
    progress: Progress,
) -> Timed:
    """The latencies of all choices: from the table named, the study folder, the user's cache, or measured now.

    Where latency is neither limited nor an objective, what feeds dropped columns keeps its choices.

    Args:
        config: with ``latency``.

    Raises:
        LatencyError: a table is damaged, or of another machine or model.
        ConfigError: there is no such backend, or it is not installed.
    """
    settings, budget = config.latency, Budget(**config.budget)
    assert settings is not None
    survey = Survey.of(model, layers, menus, sample, settings.batch, joined=bool(config.about_latency))
    menus = survey.led(menus)
    for name, feed in survey.fed.items() if survey.joined else ():
        log.info("no choices of its own: %s (what it computes follows the columns of %s)", feed.producer, name)
    if settings.table:
        table = LatencyTable.load(settings.table)
        table.refuse_others(survey.architecture, survey.conditions(settings.backend, settings.threads, settings.cpu), str(settings.table))
    else:
        table = measured(survey, menus, settings, folder, progress)
    opened = Timed(survey, table, budget)
    opened.layers(menus)  # so that a missing entry is told before any work
    return opened


def measured(survey: Survey, menus: Menus, config: LatencyConfig, folder: StudyFolder | None, progress: Progress) -> LatencyTable:
    """The table of this machine: that of the study, else that of the cache, else measured now and cached."""
    conditions = survey.conditions(config.backend, config.threads)
    cached = cache_folder() / "latency" / f"{survey.fingerprint(conditions)}.json"
    for path in [cached] if folder is None else [folder.latency, cached]:
        with suppress(LatencyError):
            if survey.covers(table := LatencyTable.load(path), conditions):
                return table
    cached.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(cached.with_suffix(".lock")):  # two that measure at once would measure each other
        with suppress(LatencyError):
            if survey.covers(table := LatencyTable.load(cached), conditions):
                return table
        table = corrected(survey, survey.measure(conditions, progress.stage, progress.advance), menus, progress)
        table.save(cached)
    return table
