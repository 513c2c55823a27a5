"""Forward passes: the one place that calls a model.

Inputs are a tensor, which is the model's only argument; a tuple, its positional arguments; or a dict, its keyword arguments.
Each may hold further tuples, lists and dicts of tensors.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

Inputs = Any  # a tensor, or a tuple, list or dict of such


def forward(model: nn.Module, inputs: Inputs) -> Any:
    """What ``model`` returns for ``inputs``; it works on copies of them, as some models change their input."""
    own = tree_map_only(Tensor, torch.clone, inputs)
    if isinstance(own, dict):
        return model(**own)
    return model(*own) if isinstance(own, tuple) else model(own)


def forward_with(model: nn.Module, state: dict[str, Tensor], inputs: Inputs) -> Any:
    """What ``model`` returns for ``inputs`` with other tensors in the place of its own, by their names."""
    own = tree_map_only(Tensor, torch.clone, inputs)
    args, named = ((), own) if isinstance(own, dict) else (own if isinstance(own, tuple) else (own,), {})
    return torch.func.functional_call(model, state, args, named)


@contextmanager
def inference(model: nn.Module) -> Iterator[nn.Module]:
    """``model`` in eval mode without gradients; its modes are put back afterwards."""
    modes = {m: m.training for m in model.modules()}
    model.eval()
    try:
        with torch.inference_mode():
            yield model
    finally:
        for module, mode in modes.items():
            module.training = mode


def tensors(inputs: Inputs) -> list[Tensor]:
    """All tensors in ``inputs``."""
    return [t for t in tree_leaves(inputs) if isinstance(t, Tensor)]


def examples_in(inputs: Inputs) -> int:
    """How many examples a batch holds: the length of its first tensor."""
    return len(tensors(inputs)[0])


def rows(inputs: Inputs, index: slice | Tensor) -> Inputs:
    """The examples at ``index`` of a batch."""
    return tree_map_only(Tensor, lambda t: t[index], inputs)


def joined(parts: list[Inputs]) -> Inputs:
    """Several batches of the same structure as one."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(parts)
    if isinstance(first, dict):
        return {key: joined([part[key] for part in parts]) for key in first}
    if isinstance(first, tuple | list):
        return type(first)(joined(list(column)) for column in zip(*parts, strict=True))
    return first


def moved(inputs: Inputs, device: torch.device | str) -> Inputs:
    """``inputs`` with all tensors on ``device``."""
    return tree_map_only(Tensor, lambda t: t.to(device, non_blocking=True), inputs)


def device_of(model: nn.Module) -> torch.device:
    """Where the model's tensors are; the CPU if it has none."""
    own = next((t for t in (*model.parameters(), *model.buffers())), None)
    return torch.device("cpu") if own is None else own.device


def shapes(inputs: Inputs) -> str:
    """The shapes of all tensors, for messages."""
    return ", ".join(str(tuple(t.shape)) for t in tensors(inputs)) or type(inputs).__name__
