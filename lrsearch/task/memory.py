"""Memory: what an exhausted memory looks like, and batches that are halved until they fit."""

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from lrsearch.errors import ModelError

T = TypeVar("T")
Note = Callable[[str], None]
log = logging.getLogger("lrsearch")

# What torch says on a CPU (Linux and macOS, Windows), cuDNN, and accelerators whose error is no torch.OutOfMemoryError.
_SAID = ("out of memory", "can't allocate memory", "not enough memory", "cudnn_status_alloc_failed")


def out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory is exhausted."""
    said = isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _SAID)
    return said or isinstance(error, MemoryError | torch.OutOfMemoryError)


def logged(text: str) -> None:
    """The note that nobody else is told of."""
    log.warning("%s", text)


def too_large(error: BaseException) -> ModelError:
    """What a user is told where a single example exhausts the memory."""
    return ModelError(
        "one example must fit into memory", value=f"{type(error).__name__}: {error}", place="the model",
        remedy="Free memory, or take another device.",
    )


class BatchSize:
    """How many examples a forward pass takes; halved for good each time that so many do not fit into memory.

    Args:
        size: to begin with.
        note: told of each halving; the log by default.

    Attributes:
        size: now.
    """

    def __init__(self, size: int, note: Note = logged) -> None:
        self.size, self._note = size, note

    def run(self, work: Callable[[int], T]) -> T:
        """``work(size)``, again with half the size for as long as memory is exhausted.

        Raises:
            ModelError: not even one example fits.
        """
        while True:
            try:
                return work(self.size)
            except Exception as error:
                if not out_of_memory(error):
                    raise
                if self.size == 1:
                    raise too_large(error) from error
            self.size //= 2  # outside of the handler, whose traceback holds what the failed pass had allocated
            torch.cuda.empty_cache()
            self._note(f"out of memory: models are run on {self.size} examples at a time from here on; lower proxy.batch")
