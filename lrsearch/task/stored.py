"""Tasks as JSON, beside saved models; a stored task names no code but the tasks that are registered."""

from collections.abc import Mapping
from typing import Any

from lrsearch.errors import ArtifactError
from lrsearch.task.base import Task
from lrsearch.task.registry import TASKS
from lrsearch.task.several import Several
from lrsearch.task.softmax import Classification


def task_to_dict(task: Task) -> dict[str, Any]:
    """Inverse of :func:`task_from_dict`."""
    return {**task.identity, "learned": task.learned}


def task_from_dict(data: Mapping[str, Any] | None) -> Task | None:
    """The task in ``data``; classification if there is none, as before tasks had names; None if it is not known here.

    Raises:
        ArtifactError: the data are damaged.
    """
    if data is None:
        return Classification()
    try:
        settings = {k: v for k, v in data.items() if k not in ("name", "learned")}
        task = _made(data["name"], settings)
        return task if task is None or data.get("learned") is None else task.with_learned(data["learned"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError("the task must be as lrsearch wrote it", value=repr(error), place="task", remedy="Export again.") from error


def _made(name: str, settings: dict[str, Any]) -> Task | None:
    if name == Several.name:
        parts = {n: task_from_dict(each) for n, each in settings["tasks"].items()}
        known = {n: task for n, task in parts.items() if task is not None}
        return Several(known, settings["weights"]) if len(known) == len(parts) else None
    return TASKS[name](**settings) if name in TASKS else None
