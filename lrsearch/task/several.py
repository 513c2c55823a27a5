"""Several outputs at once, such as a detector's heads."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from lrsearch.errors import ModelError
from lrsearch.task.base import Outputs, Task, copy_of, parts
from lrsearch.task.forward import Inputs
from lrsearch.task.registry import task_class


class Several(Task):
    """Several outputs, each with a task and a weight; the divergence is their weighted sum.

    Args:
        tasks: name of an output, or its number → its task.
        weights: the same names → weight; 1 where none is given.
    """

    name = "several"

    def __init__(self, tasks: dict[str, Task], weights: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.tasks, self.weights = tasks, {n: float((weights or {}).get(n, 1.0)) for n in tasks}

    @property
    def settings(self) -> dict[str, Any]:
        return {"tasks": {n: t.identity for n, t in self.tasks.items()}, "weights": self.weights}

    @property
    def learned(self) -> Any:
        return {n: t.learned for n, t in self.tasks.items()}

    def with_learned(self, learned: Any) -> Self:
        own = copy_of(self)
        own.tasks = {n: t if learned[n] is None else t.with_learned(learned[n]) for n, t in self.tasks.items()}
        return own

    def picked(self, raw: Any) -> tuple[Any, ...]:
        if not isinstance(raw, Tensor):
            return tuple(task.picked(_part(raw, name)) for name, task in self.tasks.items())
        raise ModelError("the model must return several outputs", value="a tensor", place="task", remedy="Name another task.")

    def outputs(self, picked: Any, inputs: Inputs) -> tuple[Outputs, ...]:
        return tuple(task.outputs(p, inputs) for task, p in zip(self.tasks.values(), picked, strict=True))

    def fitted(self, reference: Sequence[Outputs]) -> Self:
        own = copy_of(self)
        columns = zip(*reference, strict=True)
        own.tasks = {n: t.fitted(list(c)) for (n, t), c in zip(self.tasks.items(), columns, strict=True)}
        return own

    def _each(self, *sides: Outputs) -> list[tuple[Any, ...]]:
        return list(zip(self.weights.values(), self.tasks.values(), *sides, strict=True))

    def divergence(self, outputs: Outputs, reference: Outputs) -> Tensor:
        return torch.stack([w * t.divergence(o, r) for w, t, o, r in self._each(outputs, reference)]).sum(0)

    def loss(self, outputs: Outputs, reference: Outputs, temperature: float) -> Tensor:
        return torch.stack([w * t.loss(o, r, temperature) for w, t, o, r in self._each(outputs, reference)]).sum()

    def projections(self, outputs: Outputs, temperature: float, generator: torch.Generator) -> tuple[Outputs, ...]:
        found = [(w, t.projections(o, temperature, generator)) for w, t, o in self._each(outputs)]
        return tuple({"values": w**0.5 * v["values"], "mask": None} if isinstance(v, dict) else w**0.5 * v for w, v in found)


def _part(raw: Any, name: str) -> Any:
    """One of several outputs, by its name or number."""
    named = parts(raw)
    if name not in named:
        raise ModelError("the model must return this output", value=name, place="task", remedy=f"It returns {', '.join(named)}.")
    return named[name]


def named_task(
    name: str | type[Task] | Mapping[str, str], output: str | int | Mapping[str, float] | None, resolve: Callable[[str, str], object],
) -> Task:
    """The task of that class, name or dotted path; of several outputs where ``name`` is output → task, or ``output`` is output → weight.

    Raises:
        ConfigError: there is none.
    """
    def one(task: str | type[Task]) -> type[Task]:
        return task_class(task, resolve) if isinstance(task, str) else task

    if not isinstance(name, Mapping) and not isinstance(output, Mapping):
        return one(name)(output)
    weights = output if isinstance(output, Mapping) else None
    each = name if isinstance(name, Mapping) else dict.fromkeys(weights or (), name)
    return Several({part: one(task)() for part, task in each.items()}, weights)
