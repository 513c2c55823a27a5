"""A member of a study's front → the same plan, finetuned at length, saved beside it."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from lrsearch.compress import artifact
from lrsearch.compress.fit import Decomposition
from lrsearch.compress.modules import CompressedLayer
from lrsearch.compress.prepare import prepare
from lrsearch.errors import ArtifactError, ConfigError, DataError, StudyError
from lrsearch.spec.config import StudyConfig
from lrsearch.spec.plan import Plan
from lrsearch.spec.progress import Progress
from lrsearch.spec.recover import RecoverConfig
from lrsearch.spec.score import Score
from lrsearch.spec.training import Recipe
from lrsearch.study.checkpoint import load_state, save_state
from lrsearch.study.evaluator import Evaluator, Scored, fitting
from lrsearch.study.front_conditions import choose
from lrsearch.study.identity import read_inputs
from lrsearch.study.study_folder import StudyFolder
from lrsearch.task.base import Task
from lrsearch.task.data import Examples
from lrsearch.task.fingerprints import refuse_overlap
from lrsearch.task.sources import load_metric
from lrsearch.task.stored import task_from_dict
from lrsearch.train.finetune import Training
from lrsearch.train.range_test import range_test, short
from lrsearch.train.recover import Recovery
from lrsearch.train.teacher import Teacher

COMPRESSED = ["sparse_layers", "low_rank_layers", "low_rank_sparse_layers"]  # columns of the front: how many are so


@dataclass(frozen=True)
class RecoverReport:
    """What came of a recovery.

    Attributes:
        before: score of the member.
        after: score of the recovered model; its fidelity counts the steps of the search and of the recovery.
        folder: where it is.
        improved: whether ``after`` is better than ``before``, by what the study compares.
        joined: whether it is on the front; None where it was written elsewhere.
    """

    before: Score
    after: Score
    folder: Path
    improved: bool
    joined: bool | None = None

    @classmethod
    def of(cls, before: Mapping[str, Any], after: Mapping[str, Any], folder: Path, objective: str) -> "RecoverReport":
        """A report of two scores as they are kept; ``objective`` is ``divergence`` or ``metric``."""
        old, new = Score.of(before), Score.of(after)
        return cls(old, new, folder, new.divergence < old.divergence if objective == "divergence" else new.quality > old.quality)


def chosen_member(front: pd.DataFrame, objective: str, conditions: str, index: int | None) -> str:
    """The folder of the model in row ``index``, or of the best that satisfies ``conditions``; neither the dense model nor a recovered one.

    Raises:
        ConfigError: there is none, or it is one of these.
    """
    recovered = front.get("recovered", pd.Series(False, front.index)).astype(bool)
    dense = front[COMPRESSED].sum(axis=1) == 0
    rows = choose(front if index is not None else front[~recovered & ~dense], objective, conditions, index)
    if not rows:
        raise ConfigError("the front must have a compressed member", value="none", place="--pick", remedy="Search on.")
    for refused, what in ((recovered, "a recovered one"), (dense, "the dense model, which lost nothing")):
        if refused[rows[0]]:
            raise ConfigError("must be a compressed member that the search found", value=what, place="--index", remedy="See front.csv.")
    return str(front.model[rows[0]])


def recover_member(
    study: Path, model: str, out: Path, base: nn.Module, calibration: Examples, scoring: Examples, train: Examples,
    config: StudyConfig, progress: Progress, task: Task | None = None,
) -> RecoverReport:
    """Finetune the member in ``study / model`` and save it to ``out``; killed and called again, it goes on with the epoch it was in.

    A member that was recovered with the same settings is not trained again.

    Args:
        base: the dense model; not changed.
        calibration: for BatchNorm, as in the search.
        scoring: the study's score data.
        train: inputs, and labels if there are any.
        config: the study's, with the settings of the recovery.
        task: the study's, if it is of the caller's own code.

    Raises:
        DataError: score data are in another set, or the sets are too small, or are not those of the study.
        StudyError: an unfinished recovery has other settings, or is damaged.
        ArtifactError: ``out`` is a link, or holds more than a saved model.
        ScoreError: the loss or the outputs are not finite, or a training step does not fit into memory.
    """
    identity = _identity(study / model, config, _checked_data(study, calibration, scoring, train))
    if (done := _finished(out, config.objectives[0])) and done[0] == identity:
        return done[1]
    artifact.refuse_strangers(out)
    state = StudyFolder(study).recovery(model)
    plan, about = artifact.read_plan(study / model)
    small, storage = artifact.load(study / model, base), artifact.read_storage(study / model, base)
    fits = {n: m.decomposition() for n, m in small.named_modules() if isinstance(m, CompressedLayer) and n in plan.layers}
    dense, settled_as = prepare(base, about.get("split", ())), task or task_of(about, config.task)
    if metric := load_metric(config.proxy.metric):
        settled_as = settled_as.measured_by(metric)
    evaluator = Evaluator(
        dense, calibration, scoring, None, config.proxy, settled_as, config.device, storage, progress.note, config.deploy.precision,
    )
    fits = {n: _moved(fit, config.device) for n, fit in fits.items()}
    teacher, kept = evaluator.taught(train, config.recover), load_state(state, identity) if state.exists() else None
    recipe = config.recover.recipe if kept is None else Recipe(kept.get("lowered", "auto"), kept["peak"])
    recipe = recipe or _found_recipe(evaluator, teacher, fits, small.state_dict(), config.recover, progress)
    evaluator.begin(fits, small.state_dict())
    recovery = Recovery(evaluator.work, fits, teacher.lowering(recipe.loss), config.recover, recipe.learning_rate)
    if kept is not None:
        recovery.load_state_dict(kept)
    fits = _trained(recovery, state, identity, progress)
    steps = about["score"]["fidelity"] + recovery.epochs * recovery.steps
    settled = about["score"]["batchnorm"] if config.recover.batchnorm == "frozen" else None
    scored = evaluator.rescored(fits, steps, f"recovery of {model}", settled, train)
    recovered = {"trial": int(Path(model).name), "identity": identity, **config.recover.model_dump(mode="json")}
    _save(evaluator, plan, scored, out, {**about, "before": about["score"], "score": scored.score.to_dict(), "recovered": recovered})
    state.unlink(missing_ok=True)
    return RecoverReport.of(about["score"], scored.score.to_dict(), out, config.objectives[0])


def task_of(about: Mapping[str, Any], named: object) -> Task:
    """The task that a saved model was scored with.

    Raises:
        ConfigError: it is of the user's own code.
    """
    if (task := task_from_dict(about.get("task"))) is None:
        raise ConfigError("must be given, as it is a class of yours", value=named, place="task", remedy="Pass task=, an instance of it.")
    return task


def _save(evaluator: Evaluator, plan: Plan, scored: Scored, out: Path, about: Mapping[str, Any]) -> None:
    model = evaluator.compressed(evaluator.storage.layers, plan, scored)
    plain = evaluator.in_float32(scored, str(out))
    about = {**about, "float32": plain.to_dict()} if plain else about
    artifact.save(model, plan, out, {k: v for k, v in about.items() if k != "storage"}, evaluator.storage)


def _moved(fit: Decomposition, device: str) -> Decomposition:
    """``fit`` on ``device``, in float32 at least, as all fits are."""
    wide = torch.promote_types(fit.sparse.dtype, torch.float32)
    factors = tuple(f.to(device, wide) for f in fit.factors)
    return Decomposition(fit.layer, fit.plan, factors, fit.sparse.to(device, wide), fit.mask.to(device))


def _checked_data(study: Path, calibration: Examples, scoring: Examples, train: Examples) -> dict[str, str]:
    """role → fingerprint."""
    prints = refuse_overlap(scoring, calibration, train)
    known: dict[str, str] = read_inputs(StudyFolder(study))["data"]
    for role in ("calibration", "score"):
        if prints[role] != known[role]:
            raise DataError(
                "must be the data of the study, so that scores can be compared", value=f"{prints[role]}, not {known[role]}",
                place=f"data.{role}", remedy="Give the same data as to the search.",
            )
    if train.units < 2:
        raise DataError("needs at least 2 examples", value=train.units, place="data.train", remedy="Give more.")
    return prints


def _identity(member: Path, config: StudyConfig, prints: Mapping[str, str]) -> str:
    """Names a recovery by the member's files, the settings and the data."""
    whole = hashlib.sha256((member / artifact.WEIGHTS).read_bytes() + (member / artifact.PLAN).read_bytes())
    whole.update(json.dumps([config.recover.model_dump(mode="json"), dict(prints)], sort_keys=True).encode())
    return whole.hexdigest()[:16]


def _finished(out: Path, objective: str) -> tuple[str, RecoverReport] | None:
    """Identity and report of what is in ``out`` already.

    Raises:
        StudyError: it is something else than a recovered model.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    about: dict[str, Any] = {}
    with suppress(ArtifactError):
        about = artifact.read_plan(out)[1]
    if "recovered" not in about:
        raise StudyError("only a recovered model may be replaced", value="something else", place=str(out), remedy="Give another --out.")
    return about["recovered"]["identity"], RecoverReport.of(about["before"], about["score"], out, objective)


def _found_recipe(
    evaluator: Evaluator, teacher: Teacher, fits: Mapping[str, Decomposition], state: Mapping[str, Tensor], config: RecoverConfig,
    progress: Progress,
) -> Recipe:
    """The loss and the learning rate that suit the member, by short finetunes."""
    def begun(recipe: Recipe) -> Training:
        evaluator.begin(fits, state)
        return Training(evaluator.work, fits, teacher.lowering(recipe.loss), short(config), recipe.learning_rate)

    with fitting("the range test of the learning rate", "recover.batch"):
        found = range_test(begun, teacher.losses, config.longest * (teacher.fit.units // teacher.fit.draws(config.batch)))
    progress.note(str(found))
    return found.recipe


def _trained(recovery: Recovery, path: Path, identity: str, progress: Progress) -> dict[str, Decomposition]:
    """Run ``recovery`` to its end; its state goes to ``path`` after each epoch."""
    progress.stage("Recovering", recovery.config.epochs, recovery.epochs)

    def keep() -> None:
        save_state(path, identity, recovery.state_dict())
        progress.advance(f"loss {recovery.loss:.4f} (held-out divergence {float(recovery.best.last.mean()):.4f})")

    with fitting("the recovery", "recover.batch"):
        return recovery.run(keep)
