"""What inputs look like, as JSON, and made-up inputs of that look: for models whose data are not at hand."""

from typing import Any

import torch
from torch import Tensor

from lrsearch.errors import ArtifactError
from lrsearch.task.forward import Inputs

MOST_MADE_UP = 2**28  # in made-up inputs: what a damaged description may ask for


def describe(inputs: Inputs) -> Any:
    """The shapes of one example's tensors, and their types, in the structure of ``inputs``."""
    if isinstance(inputs, Tensor):
        return {"shape": list(inputs.shape[1:]), "dtype": str(inputs.dtype).removeprefix("torch.")}
    if isinstance(inputs, dict):
        return {"keywords": {key: describe(value) for key, value in inputs.items()}}
    return {"positions" if isinstance(inputs, tuple) else "list": [describe(value) for value in inputs]}


def made_up(description: Any, examples: int = 2) -> Inputs:
    """Random inputs where they are floating point, zeros elsewhere, which are valid indices.

    Raises:
        ArtifactError: the description is damaged.
    """
    try:
        return _made(description, examples)
    except (TypeError, KeyError, AttributeError, ValueError, RuntimeError) as error:
        raise ArtifactError(
            "the description of the inputs must be as lrsearch wrote it", value=repr(error), place="inputs", remedy="Export again.",
        ) from error


def _made(description: Any, examples: int) -> Inputs:
    if "shape" in description:
        dtype, shape = getattr(torch, description["dtype"]), [examples, *description["shape"]]
        if not isinstance(dtype, torch.dtype) or torch.Size(shape).numel() > MOST_MADE_UP:
            raise ValueError(description)
        return torch.randn(shape, dtype=dtype) if dtype.is_floating_point else torch.zeros(shape, dtype=dtype)
    if "keywords" in description:
        return {key: _made(value, examples) for key, value in description["keywords"].items()}
    kind = tuple if "positions" in description else list
    return kind(_made(value, examples) for value in description["positions" if kind is tuple else "list"])
