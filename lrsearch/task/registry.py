"""Tasks by name: those of lrsearch, those that plugins register, and classes at a dotted path."""

from collections.abc import Callable
from typing import TypeVar

from lrsearch.errors import ConfigError
from lrsearch.task.base import Task

T = TypeVar("T", bound=type[Task])
TASKS: dict[str, type[Task]] = {}


def register(kind: T) -> T:
    """Make a task known by its ``name``, for study files and ``task=``."""
    TASKS[kind.name] = kind
    return kind


def task_class(name: str, resolve: Callable[[str, str], object]) -> type[Task]:
    """The task of that name, or the class at that dotted path.

    Args:
        resolve: dotted path and place → object.

    Raises:
        ConfigError: there is none.
    """
    if name in TASKS:
        return TASKS[name]
    if ":" not in name:
        raise ConfigError(
            "must be auto, a known task or a class as module:Class", value=name, place="task",
            remedy=f"Known: {', '.join(sorted(TASKS))}; a class of yours is known under @lrsearch.task.registry.register.",
        )
    found = resolve(name, "task")
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise ConfigError("must be a subclass of lrsearch.Task", value=name, place="task", remedy="Name the class itself.")
    return found
