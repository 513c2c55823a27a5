"""The user's process around a call of lrsearch: what the call needs otherwise is set for as long as it runs, and put back."""

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import optuna
import torch

_log = logging.getLogger("lrsearch")


class _Process:
    """What belongs to the whole process: the first call of several at a time notes it, the last one puts it back."""

    def __init__(self) -> None:
        self.lock, self.calls = threading.Lock(), 0

    def __enter__(self) -> None:
        with self.lock:
            if not self.calls:
                self.filters = warnings.catch_warnings()
                self.filters.__enter__()
                self.verbosity, self.level = optuna.logging.get_verbosity(), _log.level
                self.dtype = torch.get_default_dtype()
                optuna.logging.set_verbosity(optuna.logging.WARNING)
                torch.set_default_dtype(torch.float32)
            self.calls += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.calls -= 1
            if not self.calls:
                torch.set_default_dtype(self.dtype)
                optuna.logging.set_verbosity(self.verbosity)
                _log.setLevel(self.level)
                self.filters.__exit__(None, None, None)


_process = _Process()


@contextmanager
def restoring_process_state() -> Iterator[None]:
    """A context, also a decorator, in which the default dtype is float32, the default device the CPU, and gradients can be computed.

    When it ends, these are as they were, and so are Optuna's verbosity, warning filters, the level of lrsearch's log and the number of
    torch's threads. Gradients, the default device and the number of threads are this thread's, the others the process's: of several
    calls at a time the last one puts them back.
    """
    threads = torch.get_num_threads()
    with _process, torch.inference_mode(False), torch.enable_grad(), _on_cpu():
        try:
            yield
        finally:
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)


def _on_cpu() -> AbstractContextManager[object]:
    return nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")
