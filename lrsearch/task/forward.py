"""Forward passes: the one place that calls a model.

Inputs are a tensor, which is the model's only argument; a tuple, its positional arguments; or a dict, its keyword arguments.
Each may hold further tuples, lists and dicts of tensors.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

Inputs = Any  # a tensor, or a tuple, list or dict of such


def forward(model: nn.Module, inputs: Inputs) -> Any:
    """What ``model`` returns for ``inputs``; it works on copies of them, as some models change their input."""
    args, kwargs = arguments(copied(inputs))
    return model(*args, **kwargs)


def arguments(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """``inputs`` as the positional and the keyword arguments of a call."""
    if isinstance(inputs, dict):
        return (), inputs
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


def copied(inputs: Inputs) -> Inputs:
    """``inputs`` with tensors of their own."""
    return tree_map_only(Tensor, torch.clone, inputs)


def first_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """What a module reads: the first tensor among the arguments of its call, positional ones first; None if there is none."""
    return next(iter(named_tensors((*args, *kwargs.values())).values()), None)


def output_tensors(raw: Any) -> dict[str, Tensor]:
    """The tensors that a model returns, by name, each once: ``output`` itself, those of a tuple ``output_0`` and so on, others by
    their key or field."""
    return named_tensors(raw, "output")


def named_tensors(value: Any, name: str = "input") -> dict[str, Tensor]:
    """All tensors in ``value``, a tensor, tuple, list, dict, dataclass or other object, by name, each once, in order.

    A tensor by itself is ``name``; those of a tuple are numbered, ``name_0``; those of a dict and of an object have its key or field.
    """
    found: dict[str, Tensor] = {}
    _look(value, "", name, found, {})
    return found


def _look(part: Any, path: str, name: str, found: dict[str, Tensor], seen: dict[int, Any]) -> None:
    """Add the tensors in ``part`` to ``found``; ``seen`` keeps what it has, so that no id is used again.

    No closure, as one that calls itself, and all that it has seen, stays in memory until Python looks for cycles: activations of many
    layers did.
    """
    fields = _fields(part)
    if (not isinstance(part, Tensor | tuple | list | set) and not fields) or id(part) in seen:
        return
    seen[id(part)] = part
    if isinstance(part, Tensor):
        found[path or name] = part
    elif fields:
        for key, each in fields.items():
            _look(each, f"{path}.{key}" if path else str(key), name, found, seen)
    else:
        for number, each in enumerate(part):
            _look(each, f"{path or name}_{number}", name, found, seen)


def _fields(thing: Any) -> Mapping[Any, Any]:
    """Keys and values of a mapping, names and values of an object's fields; nothing for what merely holds code."""
    if isinstance(thing, Mapping):
        return thing
    if isinstance(thing, Tensor | nn.Module | type | ModuleType) or callable(thing):
        return {}
    if isinstance(thing, tuple | list | set):
        return thing._asdict() if hasattr(thing, "_asdict") else {}
    slots = [s for kind in type(thing).__mro__ for s in getattr(kind, "__slots__", ())]
    return {**{s: getattr(thing, s) for s in slots if hasattr(thing, s)}, **getattr(thing, "__dict__", {})}


def forward_with(model: nn.Module, state: dict[str, Tensor], inputs: Inputs) -> Any:
    """What ``model`` returns for ``inputs`` with other tensors in the place of its own, by their names."""
    args, named = arguments(copied(inputs))
    return torch.func.functional_call(model, state, args, named)


def autocast(device: torch.device | str, dtype: str) -> AbstractContextManager[Any]:
    """Models that run in here compute in ``dtype``, a name of torch's, where torch's autocast says so; in their own with ``none``."""
    return nullcontext() if dtype == "none" else torch.autocast(torch.device(device).type, getattr(torch, dtype))


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
    return tree_map_only(Tensor, lambda t: t[index] if t.dim() else t, inputs)


def batches_of(inputs: Inputs, size: int) -> Inputs:
    """A batch of ``size`` made of the examples of ``inputs``, repeated where they are too few."""
    return rows(joined([inputs] * -(-size // examples_in(inputs))), slice(0, size))


def joined(parts: list[Inputs]) -> Inputs:
    """Several batches of the same structure as one."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(parts) if first.dim() else first
    if isinstance(first, dict):
        return {key: joined([part[key] for part in parts]) for key in first}
    if isinstance(first, tuple | list):
        return type(first)(joined(list(column)) for column in zip(*parts, strict=True))
    return first


def moved(inputs: Inputs, device: torch.device | str) -> Inputs:
    """``inputs`` with all tensors on ``device``, where they may be read at once."""
    return tree_map_only(Tensor, lambda t: t.to(device), inputs)


def moved_while_computing(inputs: Inputs, device: torch.device | str) -> Inputs:
    """The same, from the CPU to CUDA, through pinned memory, from which the device copies while it computes what was asked before."""
    return tree_map_only(Tensor, lambda t: t.pin_memory().to(device, non_blocking=True), inputs)


def device_of(model: nn.Module) -> torch.device:
    """Where the model's tensors are; the CPU if it has none."""
    own = next((t for t in (*model.parameters(), *model.buffers())), None)
    return torch.device("cpu") if own is None else own.device


def state_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of the model's state dict by name, without the extra state that some modules put there, which may be any object."""
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}


def shapes(inputs: Inputs) -> str:
    """The shapes of all tensors, for messages."""
    return ", ".join(str(tuple(t.shape)) for t in tensors(inputs)) or type(inputs).__name__
