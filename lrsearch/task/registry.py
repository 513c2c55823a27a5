"""Tasks by name: those of lrsearch, those that plugins register, and classes at a dotted path."""

from collections.abc import Callable

from lrsearch.errors import ConfigError
from lrsearch.spec.registry import Registry
from lrsearch.task.base import Task

SOFTMAX, OTHERS = "lrsearch.task.softmax", "lrsearch.task.others"
TASKS: Registry[type[Task]] = Registry(
    "task", "lrsearch.tasks", base="lrsearch.Task", register="lrsearch.extend.TASKS.register", place="task", made=lambda cls: cls,
    builtin={
        "classification": SOFTMAX, "segmentation": SOFTMAX, "tokens": SOFTMAX, "binary": OTHERS, "regression": OTHERS, "embedding": OTHERS,
    },
    reserved=("auto", "several"),
)
register = TASKS.register


def task_class(name: str, resolve: Callable[[str, str], object]) -> type[Task]:
    """The task of that name, or the class at that dotted path.

    Args:
        resolve: dotted path and place → object.

    Raises:
        ConfigError: there is none.
    """
    if ":" not in name:
        return TASKS[name]
    found = resolve(name, "task")
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise ConfigError("must be a subclass of lrsearch.Task", value=name, place="task", remedy="Name the class itself.")
    return found
