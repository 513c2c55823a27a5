"""A saved model → a polished one beside it, if held-out data say that it is better."""

import copy
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from lrsearch.compress import artifact
from lrsearch.compress.apply import compress
from lrsearch.compress.prepare import prepare
from lrsearch.errors import ArtifactError, DataError
from lrsearch.study.parts import split_calibration
from lrsearch.task.base import Task
from lrsearch.task.data import Examples
from lrsearch.task.forward import examples_in
from lrsearch.train.batchnorm import Correction
from lrsearch.train.polish import polish, polish_batches
from lrsearch.workflows.steps.recover_member import task_of


@dataclass(frozen=True)
class PolishReport:
    """What came of a polish.

    Attributes:
        before: mean divergence from the dense model on the held-out examples.
        after: the same, polished.
        examples: how many were fitted to.
        held_out: how many decided.
        folder: where the polished model is; None if it was not better.
    """

    before: float
    after: float
    examples: int
    held_out: int
    folder: Path | None


def polish_folder(
    folder: Path, base: nn.Module, calibration: Examples, out: Path,
    share: float = 0.25, batch: int = 100, device: str = "cpu", trained_on: Examples | None = None, task: Task | None = None,
) -> PolishReport:
    """Polish the plan in ``folder`` and write the model to ``out`` if the held-out divergence falls.

    The polish starts from the dense weights: what finetuning gave the model in ``folder`` counts in
    the comparison, but does not go into the polished model.

    Args:
        folder: a model that a study saved.
        base: the dense model it was made from; not changed.
        calibration: examples; the last ``share`` of them is held out.
        out: folder of the polished model.
        share: of the examples that decide.
        batch: examples at a time when models are scored.
        device: where to compute.
        task: of the model, if it is of the caller's own code.
        trained_on: what the model in ``folder`` was finetuned on, if it was; these examples do not decide, as that model does
            better on them than on others.

    Raises:
        ArtifactError: the folder is damaged or belongs to another model, or ``out`` is something else than a polished model.
        DataError: all examples that are held out were trained on.
        ModelError: the model mixes the examples of a batch.
    """
    _refuse_unpolished(out)
    plan, about = artifact.read_plan(folder)
    small = artifact.load(folder, base).to(device)
    storage = artifact.read_storage(folder, base)
    dense = copy.deepcopy(prepare(base, about.get("split", ()))).to(device).eval()
    task, (fit, held_out) = task or task_of(about, "the study's"), split_calibration(calibration, share)
    correction = _fair(Correction(dense, fit, held_out, batch, task, device), trained_on)
    before = correction.divergence(small)
    batches = polish_batches(dense, fit, batch, device)
    found = polish(dense, storage.layers, plan, batches, task)
    storage.round_dense(stored := copy.deepcopy(dense), besides=plan.layers)
    polished = compress(stored, storage.layers, plan, storage.rounded(found.fits))
    own = polished.state_dict()
    polished.load_state_dict({**own, **found.tensors})
    after = correction.divergence(polished)
    better = after < before
    if better:
        artifact.save(polished.cpu(), plan, out, {**about, "polished": {"held_out_divergence": after, "before": before}}, storage)
    return PolishReport(before, after, sum(map(examples_in, batches)), len(correction.held_out), out if better else None)


def _fair(correction: Correction, trained_on: Examples | None) -> Correction:
    """``correction`` without the held-out examples that were trained on."""
    fair = correction.without(trained_on) if trained_on else correction
    if fair is None:
        raise DataError(
            "held-out examples must not have been trained on", value=f"all {len(correction.held_out)} are in data.train",
            place="data.calibration", remedy="Give calibration examples that are not in data.train.",
        )
    return fair


def _refuse_unpolished(out: Path) -> None:
    """Check that ``out`` is missing, empty, or a polished model and nothing else."""
    artifact.refuse_strangers(out)
    if out.exists() and any(out.iterdir()) and "polished" not in artifact.read_plan(out)[1]:
        rule = "only a polished model may be replaced"
        raise ArtifactError(rule, value="another model", place=str(out), remedy="Give another --out.")
