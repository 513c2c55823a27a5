"""The task of a study: named or chosen, checked on the model and the data, and told to the user."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lrsearch.errors import ModelError
from lrsearch.task.auto import choose_task, constant
from lrsearch.task.base import Outputs, Task
from lrsearch.task.data import Batch, Examples
from lrsearch.task.forward import forward, inference, moved, shapes, tensors
from lrsearch.task.memory import BatchSize, out_of_memory
from lrsearch.task.metrics import Metric, UserMetric
from lrsearch.task.scoring import Reference
from lrsearch.task.several import Several, named_task
from lrsearch.task.softmax import sums_to_one, within_one

LOOKED_AT = 64  # examples that tell the task
SAME = 1e-4  # of the largest output: what two passes over equal inputs may differ by; float32 sums in another order differ by less


def settled_task(
    wanted: Task | type[Task] | str | Mapping[str, str], model: nn.Module, scoring: Examples, calibration: Examples,
    resolve: Callable[[str, str], Any], *, output: str | int | Mapping[str, float] | None = None,
    metric: UserMetric | Metric | None = None, device: torch.device | str = "cpu", note: Callable[[str], None] = lambda _: None,
) -> Task:
    """The task that ``wanted`` names, or that outputs and labels tell if it is ``auto``, ready to use.

    Args:
        wanted: ``auto``, a name, a dotted path, a class or an instance; or several outputs → a name for each.
        model: the dense model; left as it was.
        scoring: the data whose labels count.
        calibration: tell what the dense model's outputs are like.
        resolve: dotted path and place → object.
        output: which of several outputs counts, or those that count → their weights.
        metric: instead of the task's own.
        device: where to run the model.
        note: told what was chosen and why, and of what is odd about the model.

    Raises:
        ConfigError: there is no such task.
        ModelError: the model fails on the data, is random, or its outputs do not suit the task.
        DataError: the labels do not suit the task.
    """
    sizes = BatchSize(LOOKED_AT, lambda _: None)
    batch, raw = sizes.run(lambda size: _first(model, scoring, size, device))
    if wanted == "auto":
        task, why = choose_task(raw, batch.labels, batch.inputs, output)
        note(f"task: {task.name} ({why}); task: NAME says otherwise")
    else:
        task = _named(wanted, output, resolve, raw)
    if metric is not None:
        task = task.measured_by(metric)
    picked = task.picked(raw)
    outputs = task.outputs(picked, batch.inputs)
    _refuse_other_rows(picked, outputs, batch, scoring.place)
    _refuse_random(task, model, batch, outputs)
    if all(constant(t) for t in tensors(outputs) if t.is_floating_point()):
        note("the model returns the same for every example looked at: nothing that is lost can be seen")
    if batch.labels is not None and isinstance(task.metric, Metric):
        for part in scoring.batches(sizes.size, device):
            task.check_labels(task.run_inference(model, part.inputs), part.labels, scoring.place)
    if type(task).fitted is Task.fitted:
        return task
    return task.fitted(Reference(task, model, calibration, sizes, device).all())


def _first(model: nn.Module, scoring: Examples, size: int, device: torch.device | str) -> tuple[Batch, Any]:
    """The first ``size`` examples, and what the model returns for them."""
    batch, place = next(scoring.batches(size, device)), scoring.place
    try:
        with inference(model):
            return batch, forward(model, batch.inputs)
    except Exception as error:
        if out_of_memory(error):
            raise
        raise ModelError(
            "the model must accept a batch of the data", value=f"{type(error).__name__}: {error}", place=f"{place}: {shapes(batch.inputs)}",
            remedy="Match the data's shape and type to the model; a dict is fed by keyword, a tuple by position.",
        ) from error


def _named(
    wanted: Task | type[Task] | str | Mapping[str, str], output: str | int | Mapping[str, float] | None, resolve: Callable[[str, str], Any],
    raw: Any,
) -> Task:
    if isinstance(wanted, Task):
        return wanted
    task = named_task(wanted, output, resolve)
    picked = task.picked(raw)
    for one, values in zip(task.tasks.values(), picked, strict=True) if isinstance(task, Several) else [(task, picked)]:
        if hasattr(one, "probabilities") and isinstance(values, Tensor):
            one.probabilities = sums_to_one(values, one.axis) if hasattr(one, "axis") else within_one(values)
    return task


def _refuse_other_rows(picked: Any, outputs: Outputs, batch: Batch, place: str) -> None:
    """Check that each output has a row for each example.

    Raises:
        ModelError: one has fewer or more.
    """
    if any(not t.dim() or len(t) != len(batch) for t in tensors(outputs)):
        raise ModelError(
            "outputs must have a row for each example", value=f"{shapes(picked)} for {len(batch)} examples", place=place,
            remedy="Return a batch, or name the output that counts, as output: NAME.",
        )


def _refuse_random(task: Task, model: nn.Module, batch: Batch, outputs: Any) -> None:
    """Run the model once more.

    Raises:
        ModelError: it returns something else.
    """
    again = task.run_inference(model, batch.inputs)
    for one, other in zip(tensors(moved(outputs, "cpu")), tensors(moved(again, "cpu")), strict=True):
        apart = (one.float() - other.float()).abs().nan_to_num()
        if float(apart.max()) > SAME * max(1e-6, float(one.float().abs().nan_to_num().max())):
            raise ModelError(
                "the model must return the same for the same inputs", value=f"outputs that differ by up to {float(apart.max()):.3g}",
                place="forward pass in eval mode", remedy="Take out what is random: noise, dropout outside of nn.Dropout, sampling.",
            )
