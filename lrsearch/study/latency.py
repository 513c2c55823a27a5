"""A study's latencies: a table that is at hand, or measured now, and what it says of plans."""

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from filelock import FileLock
from torch import nn

from lrsearch.errors import LatencyError
from lrsearch.latency.runner import Timing, cpu, same_cpu
from lrsearch.latency.survey import INT8, Survey, timed
from lrsearch.latency.table import LatencyTable
from lrsearch.latency.whole_models import Menus, corrected
from lrsearch.search.decoder import Decoder
from lrsearch.search.records import DENSE_INT8, Record
from lrsearch.spec.atomic import read_json
from lrsearch.spec.cache import cache_folder
from lrsearch.spec.config import LatencyConfig, Precision, StudyConfig
from lrsearch.spec.cost import Budget, Cost
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.plan import LayerPlan, Plan
from lrsearch.spec.progress import Progress
from lrsearch.spec.score import Score, renamed
from lrsearch.spec.space import Space
from lrsearch.spec.unread import drops_columns
from lrsearch.study.study_folder import StudyFolder
from lrsearch.task.forward import Inputs

log = logging.getLogger("lrsearch")

NEAR = (1.0, 0.97, 0.94, 0.91)  # shares of the limit: plans predicted there are measured first
AS_FAST = 0.01  # share of the time: a larger rank that takes no more than that longer counts as on the same stair
MOST_TIMED = 8  # models of a front that are timed together, interleaved
LEAST_MS = 1e-9  # no clock tells less
SLOWER = 0.03  # share of the dense model's time that a member of a front takes more before a user is warned; clocks repeat to 1 or 2 %


@dataclass(frozen=True)
class Timed:
    """A model's latency table, with what is needed to ask it about plans, and the study's budget; ``most`` models of a front are timed
    where latency is not limited."""

    most: ClassVar[int] = MOST_TIMED
    survey: Survey
    table: LatencyTable
    budget: Budget = Budget()  # noqa: RUF009  frozen

    def layers(self, menus: Menus) -> dict[str, dict[LayerPlan, float]]:
        """Layer name → choice → milliseconds."""
        return self.table.layers(self.survey.calls, menus, self.survey.chains)

    def spared(self, menus: Menus) -> dict[str, dict[tuple[LayerPlan, LayerPlan], float]]:
        """Layer name → what it and the layer that it feeds become → milliseconds less than the two alone."""
        return self.survey.spared(self.table, menus)

    def merged(self, plan: Plan) -> list[str]:
        """Names of the layers that run fastest as one dense layer."""
        return self.survey.merged(self.table, plan)

    @property
    def here(self) -> bool:
        """Whether the table is of this machine, so that whole models can be measured beside it."""
        return same_cpu(self.table.conditions.cpu, cpu())

    def time_front(self, plans: Mapping[int, Plan], folder: StudyFolder, progress: Progress) -> bool:
        """Measure whole models, a few at a time, the dense one beside them, but those that were; keeps for each trial what was found:
        ``ms``, ``dense_ms`` and, where the study limits latency, ``verified``: whether the limits hold.

        Args:
            plans: trial → plan, along the front; all of them where latency is limited, else ``most`` evenly chosen.
            folder: of the study.

        Returns:
            Whether some of ``plans`` are over the limits.
        """
        known = measured_whole(folder)
        most = len(plans) if self.limited else self.most
        chosen = {round(i) for i in np.linspace(0, len(plans) - 1, min(len(plans), most))}
        due = {str(trial): plan for i, (trial, plan) in enumerate(plans.items()) if i in chosen and str(trial) not in known}
        trials = list(due)
        for part in (trials[i : i + MOST_TIMED] for i in range(0, len(trials), MOST_TIMED)):
            known |= zip(part, self._time([due[trial] for trial in part], progress), strict=True)
            folder.save(folder.measured_front, known)
        if refused := [trial for trial in plans if known.get(str(trial), {}).get("verified") is False]:
            progress.note(f"trials {', '.join(map(str, refused))} leave the front: measured whole, they are over the latency budget")
        return bool(refused)

    def time_dense_int8(self, folder: StudyFolder, score: Callable[[], Score], progress: Progress) -> None:
        """Measure the dense model in int8 beside that in float32, once for a study, and keep it beside the front, with its score.

        It is what a user has without a search: a control of every study of latency on a runtime that reads ONNX.
        """
        known: dict[str, Any] = read_json(folder.measured_front)
        if _measured(known.get(DENSE_INT8)):
            return
        if found := self.survey.dense_in_each(self.table.conditions, progress.stage, progress.advance):
            ms = {name: timing.ms for name, timing in found.items()}
            of_ratios = ms["int8" if self.table.conditions.dtype == INT8 else "float32"]
            whole = {"ms": ms["int8"], "dense_ms": of_ratios, "float32_ms": ms["float32"], "score": score().to_dict()}
            folder.save(folder.measured_front, {**measured_whole(folder), DENSE_INT8: whole})

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
        folder.fetch_file(folder.lateness)
        late: Any = read_json(folder.lateness).get("late")
        if not _plausible(late, 0.0):
            late = self.table.stray + (self._late(decoder, progress) if self.here else 0.0)
            folder.save(folder.lateness, {"late": late})
            folder.share_file(folder.lateness)
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
        conditions, merged = self.table.conditions, [self.merged(plan) for plan in plans]
        other = [not self._as_dense(plan, names) for plan, names in zip(plans, merged, strict=True)]
        progress.stage("Building models", sum(other) + 1)
        due = [(Plan(), []), *((plan, names) for plan, names, is_other in zip(plans, merged, other, strict=True) if is_other)]
        models = (self.survey.runners(plan, names, conditions) for plan, names in due)
        dense, *times = [t.ms for t in timed(models, conditions.threads, progress.stage, progress.advance)]
        left = iter(times)
        return [self._found(next(left) if is_other else dense, dense) for is_other in other]

    def _as_dense(self, plan: Plan, merged: Sequence[str]) -> bool:
        """Whether a runtime executes ``plan`` as the dense model, with other values."""
        return all(name in merged or choice.executed.untouched for name, choice in plan.layers.items())

    def _found(self, ms: float, dense: float) -> dict[str, float]:
        found = {"ms": ms, "dense_ms": dense}
        return {**found, "verified": ms <= self.budget.resolve(Cost(latency_ms=dense))["latency_ms"]} if self.limited else found

    def faster(self, menus: Menus) -> dict[str, list[LayerPlan]]:
        """``menus`` without the choices that take as long as the dense layer, which lose something for nothing."""
        ms = replace(self, table=replace(self.table, scale=1.0)).layers(menus)
        return {n: [p for p in menu if p.untouched or ms[n][p] < ms[n][LayerPlan()] or self._spares(n, p)] for n, menu in menus.items()}

    def _spares(self, name: str, plan: LayerPlan) -> bool:
        """Whether what feeds a layer is faster."""
        return name in self.survey.fed and drops_columns(plan)

    def without_slower_ranks(self, space: Space, menus: Menus) -> dict[str, list[LayerPlan]]:
        """``menus`` without the ranks, under a rule with ``rank_multiple: auto``, beside which larger ones take as long."""
        auto = {name for name in menus if (rule := space.rule(name)) and rule.rank_multiple == "auto"}
        alone = replace(self, table=replace(self.table, scale=1.0))
        latency = alone.layers({name: menus[name] for name in auto})
        return {n: largest_of_step(menu, latency[n]) if n in auto else list(menu) for n, menu in menus.items()}


class FrontTimer(Timed):
    """Whole models measured in a study that has no table: layers run in the form that they are stored in."""

    most: ClassVar[int] = 4  # a model may take torch's exporter seconds

    def merged(self, plan: Plan) -> list[str]:  # noqa: ARG002
        return []

    def slower(self, plans: Mapping[int, Plan], folder: StudyFolder) -> str:
        """The members of a front that take longer than the dense model, in one line; empty if none do."""
        known = measured_whole(folder)
        ratios = {t: found["ms"] / found["dense_ms"] for t in plans if (found := known.get(str(t)))}
        late = {t: ratio for t, ratio in ratios.items() if ratio > 1 + SLOWER}
        told = ", ".join(f"trial {trial} {ratio:.2f}" for trial, ratio in late.items())
        c = self.table.conditions
        where = f"{c.backend} (threads {c.threads}, batch {c.batch})"
        return f"slower than the dense model on {where}: {told} times its latency; limit latency_ratio for faster ones" if late else ""


def front_timer(model: nn.Module, layers: Sequence[LayerSpec], plans: Iterable[Plan], sample: Inputs, precision: Precision) -> FrontTimer:
    """What measures ``plans`` whole, without limits: on ONNX Runtime, by one thread, one example at a time.

    Raises:
        ConfigError: it is not installed.
    """
    settings = LatencyConfig()
    menus = {layer.name: list(dict.fromkeys([LayerPlan(), *(plan[layer.name] for plan in plans)])) for layer in layers}
    survey = Survey.of(model, layers, menus, sample, settings.batch)
    conditions = survey.conditions(settings.backend, settings.threads, precision=precision)
    unknown = Timing(LEAST_MS, LEAST_MS, LEAST_MS, LEAST_MS, 1)
    return FrontTimer(survey, LatencyTable(conditions, survey.architecture, unknown, {}))


def dense_int8(folder: StudyFolder) -> dict[str, Any]:
    """What :meth:`Timed.time_dense_int8` found; empty where it was not measured."""
    found: Any = read_json(folder.measured_front).get(DENSE_INT8)
    return dict(found) if _measured(found) and isinstance(found.get("score"), dict) else {}


def behind_int8(members: Sequence[Record], folder: StudyFolder) -> str:
    """Of a front that was measured, how much of it the dense model in int8 is ahead of in time and divergence; empty if of nothing."""
    control, known = dense_int8(folder), measured_whole(folder)
    if not control or control["ms"] == control["dense_ms"]:  # ratios are of the control itself
        return ""
    share, far = control["ms"] / control["dense_ms"], renamed(control["score"])["divergence"]
    ratios = [(found["ms"] / found["dense_ms"], r.score.divergence) for r in members if (found := known.get(str(r.number)))]
    behind = sum(ratio >= share and lost >= far for ratio, lost in ratios)
    text = f"{DENSE_INT8} takes {share:.2f} of the latency at divergence {far:.2g}: {behind} of {len(ratios)} members of the front are"
    return f"{text} slower and lose more; deploy: {{precision: int8}} looks for models that are faster than it" if behind else ""


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
    over = _refused(folder)
    return {r.number for r in records if r.number in over or r.twin in over}


def over_by(folder: StudyFolder, budget: Budget) -> dict[int, float]:
    """Trials that were measured whole and are over the study's latency ``budget`` → by how many milliseconds."""
    limits = {trial: budget.resolve(Cost(latency_ms=found["dense_ms"])) for trial, found in _refused(folder).items()}
    return {trial: found["ms"] - limits[trial].get("latency_ms", 0.0) for trial, found in _refused(folder).items()}


def _refused(folder: StudyFolder) -> dict[int, dict[str, float]]:
    return {int(trial): found for trial, found in measured_whole(folder).items() if trial.isdigit() and found.get("verified") is False}


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
    model: nn.Module, layers: Sequence[LayerSpec], menus: Menus, sample: Inputs, config: StudyConfig, folder: StudyFolder | None,
    progress: Progress,
) -> Timed:
    """The latencies of all choices: from the table named, the study folder, the user's cache, or measured now.

    Args:
        config: with ``latency``.

    Raises:
        LatencyError: a table is damaged, or of another machine or model.
        ConfigError: there is no such backend, or it is not installed.
    """
    settings, budget = config.latency, Budget(**config.budget)
    assert settings is not None
    survey = Survey.of(model, layers, menus, sample, settings.batch)
    if settings.table:
        table, precision = LatencyTable.load(settings.table), config.deploy.precision
        wanted = survey.conditions(settings.backend, settings.threads, settings.cpu, precision)
        table.refuse_others(survey.architecture, wanted, str(settings.table))
    else:
        table = measured(survey, menus, settings, folder, progress, config.deploy.precision)
    if table.doubt:
        progress.note(table.doubt)
    opened = Timed(survey, table, budget)
    opened.layers(menus)  # so that a missing entry is told before any work
    return opened


def measured(
    survey: Survey, menus: Menus, config: LatencyConfig, folder: StudyFolder | None, progress: Progress, precision: Precision = "float32",
) -> LatencyTable:
    """The table of this machine: that of the study, else that of the cache, else measured now and cached."""
    conditions = survey.conditions(config.backend, config.threads, precision=precision)
    if folder and folder.shares:
        folder.fetch_file(folder.latency)
        with suppress(LatencyError):
            if survey.covers(table := LatencyTable.load(folder.latency), conditions, anywhere=True):
                return table
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
        if not table.doubt:  # else it is measured again for the next study
            table.save(cached)
    return table
