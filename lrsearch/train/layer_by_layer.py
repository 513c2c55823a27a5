"""Threads that take turns: many batches go through a network side by side, one layer at a time.

So every batch reaches a layer before any leaves it, and only what lies between two layers is held
in memory, never what one operation on all batches at once would need.
"""

import threading
from collections.abc import Callable, Sequence

import torch


class LayerByLayer:
    """Runs tasks in a fixed order; each goes on until it calls :meth:`meet`, then the next one does."""

    def __init__(self) -> None:
        self._turn = threading.Condition()
        self._tasks, self._current = 0, 0
        self._error: BaseException | None = None
        self._here = threading.local()

    def run(self, tasks: Sequence[Callable[[], object]]) -> None:
        """Run all ``tasks``, without gradients; they must meet equally often.

        Raises:
            Exception: the first that a task raises; the others are given up.
        """
        self._tasks = len(tasks)
        threads = [threading.Thread(target=self._run, args=(i, task), daemon=True) for i, task in enumerate(tasks)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._error is not None:
            raise self._error

    @property
    def index(self) -> int:
        """Which task this is."""
        return int(self._here.index)

    def meet(self, last: Callable[[], object]) -> None:
        """Wait until every task is here; the last of them runs ``last`` before any goes on."""
        if self.index == self._tasks - 1:
            last()
        self._pass_on()
        self._await_turn()

    def _run(self, index: int, task: Callable[[], object]) -> None:
        self._here.index = index
        with self._turn:
            try:
                self._await_turn()
                with torch.no_grad():  # fits need gradients of their own, which inference mode forbids
                    task()
            except _GivenUp:
                return
            except BaseException as error:
                self._error = error
            self._pass_on()

    def _pass_on(self) -> None:
        self._current = (self.index + 1) % self._tasks
        self._turn.notify_all()

    def _await_turn(self) -> None:
        self._turn.wait_for(lambda: self._current == self.index or self._error is not None)
        if self._error is not None:
            raise _GivenUp


class _GivenUp(BaseException):
    """Another task failed."""
