"""``task: auto``: what a model is for, as its outputs and the labels tell; one sentence says what was chosen and why."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lrsearch.errors import ModelError
from lrsearch.task.base import LIKELY, Task, parts, pick
from lrsearch.task.forward import Inputs, tensors
from lrsearch.task.others import Binary, Embedding, Regression
from lrsearch.task.several import Several
from lrsearch.task.softmax import CLOSE, Classification, Segmentation, Tokens, sums_to_one, within_one

EMBEDDINGS = ("last_hidden_state", "sentence_embedding", "pooler_output")  # of Hugging Face and sentence-transformers
Choice = tuple[Task, str]


def choose_task(raw: Any, labels: Any, inputs: Inputs, output: str | int | Mapping[str, float] | None = None) -> Choice:
    """The task of a model that returned ``raw`` for ``inputs`` whose labels are ``labels``, or None; with the reason in words.

    Raises:
        ModelError: the outputs tell nothing.
    """
    if isinstance(output, Mapping):
        return _several(raw, inputs, output)
    picked = pick(raw, output)
    if isinstance(picked, tuple):
        return _several(raw, inputs, None)
    values, wanted = picked.detach(), labels if isinstance(labels, Tensor) and picked.dim() and len(labels) == len(picked) else None
    named = {} if isinstance(raw, Tensor) or output is not None else parts(raw)
    key = next((k for k in LIKELY if isinstance(named.get(k), Tensor)), None)
    task, why = _of_tensor(values, wanted, inputs, key)
    task.output = output
    return task, why + (f"; of its outputs {key} counts" if key else "")


def _several(raw: Any, inputs: Inputs, weights: Mapping[str, float] | None) -> Choice:
    """Each output by its own shape; those that ``weights`` name, or all, of equal weight."""
    heads = {n: t for n, t in parts(raw).items() if isinstance(t, Tensor) and t.is_floating_point() and t.dim()}
    if missing := next((n for n in weights or () if n not in heads), None):
        remedy = f"It returns {', '.join(heads) or type(raw).__name__}."
        raise ModelError("output must name tensors that the model returns", value=missing, place="output", remedy=remedy)
    found = {n: _of_tensor(heads[n].detach(), None, inputs, None) for n in weights or heads}
    told = ", ".join(f"{n} {task.name}" for n, (task, _) in found.items())
    why = f"of the outputs: {told}, as output weighs them" if weights else f"the model returns several outputs: {told}, of equal weight"
    return Several({n: task for n, (task, _) in found.items()}, weights), why


def _of_tensor(o: Tensor, y: Tensor | None, inputs: Inputs, key: str | None) -> Choice:
    if not o.is_floating_point():
        raise ModelError("outputs must be floating point", value=o.dtype, place="task: auto", remedy="Return logits or numbers.")
    if o.dim() == 0:
        raise ModelError("outputs must have a row for each example", value="one number", place="task: auto", remedy="Return a batch.")
    if o.dim() == 1 or o.shape[1:].numel() == 1:
        return _one_value(o, y)
    if y is None and key in EMBEDDINGS:
        return Embedding(), "vectors by their name"
    if o.dim() == 2:
        return _vector(o, y)
    return _positions(o, y, inputs, key)


def _one_value(o: Tensor, y: Tensor | None) -> Choice:
    inside = within_one(o)
    if y is not None and _zeros_and_ones(y) and y.numel() == o.numel():
        what = "probability" if inside else "logit"
        return Binary(probabilities=inside), f"one {what} for each example and labels of 0 and 1"
    return Regression(), "one number for each example" + (" and labels that are numbers" if y is not None else " and no labels")


def _vector(o: Tensor, y: Tensor | None) -> Choice:
    """Outputs ``(n, values)``."""
    probabilities = within_one(o) and bool((o.float().sum(1) - 1).abs().max() < CLOSE)
    what = "probabilities that sum to 1" if probabilities else f"{o.shape[1]} logits"
    if y is not None and not y.is_floating_point() and y.shape in {(len(o),), (len(o), 1)}:
        return Classification(probabilities=probabilities), f"{what} for each example and labels that are class indices"
    if y is not None and y.shape == o.shape:
        if _zeros_and_ones(y):
            if bool((y.sum(1) == 1).all()) and not (within_one(o) and not probabilities):
                return Classification(probabilities=probabilities), f"{what} for each example and one-hot labels"
            return Binary(probabilities=within_one(o)), f"{o.shape[1]} outputs for each example and as many labels of 0 and 1"
        return Regression(), f"{o.shape[1]} numbers for each example and labels of the same shape"
    if probabilities:
        return Classification(probabilities=True), what + " for each example"
    if bool((o.float().norm(dim=1) - 1).abs().max() < CLOSE):
        return Embedding(), "vectors of length 1"
    if within_one(o):
        return Binary(probabilities=True), f"{o.shape[1]} values between 0 and 1 for each example, which do not sum to 1"
    return Classification(), f"{o.shape[1]} outputs for each example, taken as logits"


def _positions(o: Tensor, y: Tensor | None, inputs: Inputs, key: str | None) -> Choice:
    """Outputs with three axes or more."""
    first = tensors(inputs)[0]
    if y is not None and not y.is_floating_point():
        if y.shape == (len(o), *o.shape[2:]):
            return Segmentation(probabilities=sums_to_one(o, 1)), "an output for each class and position, and a label for each position"
        if o.dim() == 3 and y.shape == o.shape[:2]:
            return Tokens(probabilities=sums_to_one(o, 2)), "an output for each token and class, and a label for each token"
    if y is not None and y.shape == o.shape:
        return Regression(), "labels of the outputs' shape"
    if first.shape == o.shape and first.is_floating_point():
        return Regression(), "outputs of the inputs' shape, as an autoencoder has them"
    if o.dim() == 3 and not first.is_floating_point():
        return Tokens(probabilities=sums_to_one(o, 2)), "an output for each token and class"
    if o.dim() == 3 and key == "logits":
        return Tokens(probabilities=sums_to_one(o, 2)), "logits for each position and class"
    if sums_to_one(o, 1) or o.dim() == 4:
        return Segmentation(probabilities=sums_to_one(o, 1)), "an output for each class and position"
    return Regression(), "numbers whose meaning nothing tells"


def _zeros_and_ones(y: Tensor) -> bool:
    return bool(((y == 0) | (y == 1)).all())


def constant(o: Tensor) -> bool:
    """Whether all examples have the same outputs."""
    return len(o) > 1 and bool(torch.isclose(o.float(), o[:1].float(), rtol=0, atol=0).all())
