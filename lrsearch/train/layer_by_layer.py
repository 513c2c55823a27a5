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
        self._turns: list[threading.Semaphore] = []
        self._place: object = None  # where the first task waits for the others; None once it ended
        self._error: BaseException | None = None
        self._here = threading.local()

    def run(self, tasks: Sequence[Callable[[], object]]) -> None:
        """Run all ``tasks``, without gradients.

        Raises:
            PartedError: they did not meet at the same places, in the same order.
            Exception: the first that a task raises; the others are given up.
        """
        self._turns = [threading.Semaphore(0) for _ in tasks]
        threads = [threading.Thread(target=self._run, args=(i, task), daemon=True) for i, task in enumerate(tasks)]
        for thread in threads:
            thread.start()
        for turn in self._turns[:1]:
            turn.release()
        for thread in threads:
            thread.join()
        if self._error is not None:
            raise self._error

    @property
    def index(self) -> int:
        """Which task this is."""
        return int(self._here.index)

    def meet(self, place: object, each: Callable[[], object], last: Callable[[], object]) -> None:
        """Run ``each``, and wait until every task is at ``place`` and did so; the last of them then runs ``last`` before any goes on."""
        self._arrive(place)
        each()
        if self.index == len(self._turns) - 1:
            last()
        self._pass_on()
        self._await_turn()

    def _arrive(self, place: object) -> None:
        if self.index == 0:
            self._place = place
        elif place is not self._place:
            raise PartedError

    def _run(self, index: int, task: Callable[[], object]) -> None:
        self._here.index = index
        try:
            self._await_turn()
            with torch.no_grad():  # fits need gradients of their own, which inference mode forbids
                task()
            self._arrive(None)
            self._pass_on()
        except _GivenUp:
            pass
        except BaseException as error:
            self._error = error
            for turn in self._turns:
                turn.release()

    def _pass_on(self) -> None:
        self._turns[(self.index + 1) % len(self._turns)].release()

    def _await_turn(self) -> None:
        self._turns[self.index].acquire()
        if self._error is not None:
            raise _GivenUp


class PartedError(Exception):
    """A task is at another place than those before it."""


class _GivenUp(BaseException):
    """Another task failed."""
