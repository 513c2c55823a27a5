"""A study: controls first, then the sampler's plans, each scored and stored before the next."""

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from lrsearch.compress import artifact
from lrsearch.errors import ScoreError
from lrsearch.profile.sweep import Profile
from lrsearch.proxy.evaluator import Evaluator
from lrsearch.search.controls import CONTROLS, control_plan, ladder
from lrsearch.search.decoder import Decoder
from lrsearch.search.progress import Progress
from lrsearch.search.records import DENSE, SEARCH, Record, front, values
from lrsearch.search.sampler import Observation, build_sampler, distributions
from lrsearch.spec.config import SearchConfig
from lrsearch.spec.front import non_dominated
from lrsearch.spec.plan import Plan
from lrsearch.spec.space import FAMILIES

MAX_FAILURES = 5


@dataclass
class Search:
    """One study's machinery; :meth:`run` may be called again and goes on where it stopped.

    Args:
        folder: the study folder.
        objectives: ``kl`` or ``metric``, then costs.
        about: kept in every saved model's ``plan.json``.
    """

    folder: Path
    objectives: tuple[str, ...]
    config: SearchConfig
    decoder: Decoder
    profile: Profile
    evaluator: Evaluator
    about: Mapping[str, Any]
    progress: Progress

    def __post_init__(self) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        dense = self.decoder.costs.dense
        self.dense = {m: getattr(dense, m) for m in self.objectives[1:]}
        self.targets = {m: self._span(m) for m in self.objectives[1:]}
        self.space = distributions(self.decoder.names, self.targets)
        self.study = self._open()
        self.records = [r for r in map(Record.of, self.study.get_trials(deepcopy=False)) if r]

    def _span(self, metric: str) -> tuple[float, float]:
        """Lowest and highest ratio of dense worth aiming at."""
        high = min(1.0, self.decoder.limits.get(metric, self.dense[metric]) / self.dense[metric])
        least = self.decoder.smallest(metric) / self.dense[metric]
        return min(high, max(self.config.lowest, least * 1.001)), high

    def _open(self) -> Study:
        """The study in ``study.db``; trials that a killed run left unfinished are queued again."""
        first = "minimize" if self.objectives[0] == "kl" else "maximize"
        study = optuna.create_study(
            storage=f"sqlite:///{self.folder / 'study.db'}", study_name="study", load_if_exists=True,
            directions=[first, *["minimize"] * (len(self.objectives) - 1)],
            sampler=build_sampler(self.config.sampler, self.space, self._observe, self.config.seed),
        )
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            study.tell(trial.number, state=TrialState.FAIL)
            if len(trial.params) == len(self.space):
                study.enqueue_trial(trial.params, user_attrs={k: v for k, v in trial.user_attrs.items() if k == "source"})
        return study

    def run(self) -> list[Record]:
        """Evaluate until ``config.trials`` plans of the search are finished; returns all records.

        Raises:
            ScoreError: too many trials in a row failed.
        """
        self._enqueue_controls()
        waiting = len(self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))
        todo = max(waiting, waiting + self.config.trials - self._searched() - self._waiting_search())
        self.progress.stage("Searching", len(self.records) + todo, len(self.records))
        started, failures = time.monotonic(), 0
        while self._waiting() or self._searched() < self.config.trials:
            if self.config.timeout and time.monotonic() - started > self.config.timeout:
                self.progress.note(f"stopped by the timeout of {self.config.timeout:g} s")
                break
            try:
                self._evaluate(self.study.ask(self.space))
                failures = 0
            except ScoreError as error:
                self.progress.note(str(error))
                failures += 1
                if failures >= MAX_FAILURES:
                    raise
            self.progress.advance(self._best())
        self._prune_models()
        return self.records

    def _waiting(self) -> bool:
        return bool(self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))

    def _waiting_search(self) -> int:
        waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        return sum(t.user_attrs.get("source", SEARCH) == SEARCH for t in waiting)

    def _searched(self) -> int:
        return sum(r.source == SEARCH for r in self.records)

    def _enqueue_controls(self) -> None:
        """Queue the dense model and each control at each target, once in a study's life."""
        seen = {(t.user_attrs.get("source"), self._target_key(t)) for t in self.study.get_trials(deepcopy=False)}
        weights = {k: 0.0 for k in self.space if not k.startswith("target/")}
        low, high = np.array(list(self.targets.values())).T
        rungs = zip(*(ladder(a, b, self.config.control_points) for a, b in zip(low, high, strict=True)), strict=True)
        plans = [(c, dict(zip(self.targets, rung, strict=True))) for rung in rungs for c in CONTROLS]
        dense = dict(zip(self.targets, high, strict=True))
        for source, targets in [(DENSE, dense), *plans]:
            params = {**{f"target/{m}": float(v) for m, v in targets.items()}, **weights}
            key = (source, tuple(round(v, 9) for k, v in params.items() if k.startswith("target/")))
            if key not in seen and self._plan(source, params) is not None:
                self.study.enqueue_trial(params, user_attrs={"source": source})
            elif key not in seen:
                self.progress.note(f"{source} cannot reach {', '.join(f'{m} {v:.3f}' for m, v in targets.items())}")

    def _target_key(self, trial: FrozenTrial) -> tuple[float, ...]:
        params = trial.params or trial.system_attrs.get("fixed_params", {})
        return tuple(round(params[f"target/{m}"], 9) for m in self.targets if f"target/{m}" in params)

    def _plan(self, source: str, params: Mapping[str, float]) -> Plan | None:
        """Decode a trial's parameters; None if nothing can reach its targets."""
        targets = {m: params[f"target/{m}"] * self.dense[m] for m in self.targets}
        if source == DENSE:
            fits = all(getattr(self.decoder.costs.dense, m) <= v for m, v in self.decoder.limits.items())
            return Plan() if fits else None
        if source in CONTROLS:
            return control_plan(self.decoder, source, targets)
        family = np.array([params.get(f"family/{f}", 0.0) for f in self.decoder.families])
        layer = np.array([params[f"layer/{n}"] for n in self.decoder.names])[self.decoder.layer]
        weighted = self.decoder.damage * np.exp(family + layer)
        return self.decoder.solve(weighted, targets) or self.decoder.solve(weighted, {})

    def _observe(self, trial: FrozenTrial) -> Observation | None:
        """What a trial tells the sampler, from rung 0."""
        record = Record.of(trial)
        if record is None or record.scores[0].kl < 1e-5:
            return None
        picked = self.decoder.terms(record.plan)
        family = [max(0, FAMILIES.index(f) if f in FAMILIES else 0) for f in self.decoder.families[picked]]
        return Observation(self.decoder.damage[picked], np.array(family), float(np.log(record.scores[0].kl)))

    def _evaluate(self, trial: Trial) -> None:
        source = trial.user_attrs.get("source", SEARCH)
        plan = self._plan(source, trial.params)
        assert plan is not None, "the budgets were checked before the study"
        twin = next((r for r in self.records if r.plan == plan), None)
        try:
            record = self._copy(trial.number, source, twin) if twin else self._score(trial.number, source, plan)
        except ScoreError as error:
            trial.set_user_attr("reason", str(error))
            self.study.tell(trial, state=TrialState.FAIL)
            raise
        for key, value in record.attributes().items():
            trial.set_user_attr(key, value)
        if record.complete:
            sign = -1.0 if self.objectives[0] == "metric" else 1.0
            first, *costs = values(record, self.objectives)
            self.study.tell(trial, [sign * first, *costs])
        else:
            self.study.tell(trial, state=TrialState.PRUNED)
        self.records.append(record)
        self._prune_models()

    def _copy(self, number: int, source: str, twin: Record) -> Record:
        return Record(number, source, twin.plan, twin.cost, twin.scores, twin.complete, twin.model)

    def _score(self, number: int, source: str, plan: Plan) -> Record:
        cost, fits = self.decoder.costs(plan), self.profile.fits(plan, self.evaluator.device)
        place = f"trial {number}"
        scores = [self.evaluator.score(fits, place)]
        model = f"models/{number:04d}"
        record = Record(number, source, plan, cost, tuple(scores), not self.evaluator.config.finetune.steps, model)
        if not record.complete and self._promoted(record):
            final, fits = self.evaluator.finetuned(fits, place)
            record = Record(number, source, plan, cost, (*scores, final), True, model)
        if record.complete and record in front([*self.records, record], self.objectives):
            compressed = self.evaluator.compressed(self.profile.layers, plan, fits)
            about = {**self.about, "cost": cost.to_dict(), "score": record.score.to_dict()}
            artifact.save(compressed, plan, self.folder / model, about)
        return record

    def _promoted(self, record: Record) -> bool:
        """Finetune the controls, and what no earlier plan dominates before finetuning."""
        if record.source != SEARCH:
            return True
        earlier = [(r.scores[0].kl, *values(r, self.objectives)[1:]) for r in self.records]
        return bool(non_dominated([*earlier, (record.scores[0].kl, *values(record, self.objectives)[1:])])[-1])

    def _prune_models(self) -> None:
        """Remove the saved models that are not on the front."""
        keep = {r.model for r in front(self.records, self.objectives)}
        for path in (self.folder / "models").glob("*"):
            if f"models/{path.name}" not in keep:
                shutil.rmtree(path, ignore_errors=True)

    def _best(self) -> str:
        members = front(self.records, self.objectives)
        if not members:
            return ""
        low, metric = members[-1], self.objectives[1]
        ratio = getattr(low.cost, metric) / self.dense[metric]
        return f"{len(members)} on the front, down to {metric} {ratio:.1%} at KL {low.score.kl:.3f}"


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write ``data`` whole or not at all."""
    scratch = path.with_suffix(".writing")
    scratch.write_text(json.dumps(data, indent=1) + "\n")
    scratch.replace(path)
