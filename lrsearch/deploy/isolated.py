"""Work that may end its process, such as an exporter in native code, in a process of its own."""

import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection

import torch

from lrsearch.errors import ModelError


def isolated(work: Callable[[], bytes], place: str) -> bytes:
    """What ``work`` returns, computed by a fork of this process with one thread; where systems cannot fork, by this one.

    A model need not be pickled so. As in DataLoader, one thread is what a fork of a process with OpenMP's threads can have.

    Args:
        place: of the work, in messages.

    Raises:
        ModelError: it raised, or its process was killed.
    """
    if not hasattr(os, "fork"):
        return work()
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(work, sender), daemon=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads, from Python 3.12 on
            process.start()
        sender.close()
        try:
            done, found = receiver.recv()
        except EOFError:
            process.join()
            done, found = False, f"a process that ended with {_ending(process.exitcode)}"
    finally:
        process.kill()
        process.join()
        receiver.close()
    if done:
        whole: bytes = found
        return whole
    raise ModelError("must run on this model", value=found, place=place, remedy="weights.safetensors does without.")


def _child(work: Callable[[], bytes], sender: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # its parent ends it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    try:
        sender.send((True, work()))
    except BaseException as error:
        first = (str(error).strip().splitlines() or [""])[0]
        sender.send((False, f"{type(error).__name__}: {first}"))
    finally:
        sender.close()
        os._exit(0)  # what the parent registered to run at its end is not the child's


def _ending(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
