"""Work in a process of its own, so that what kills it does not take the caller along."""

import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection

import torch


class ApartError(RuntimeError):
    """The work failed: the name and text of its exception, or what ended its process."""


def apart(work: Callable[[], bytes]) -> bytes:
    """What ``work`` returns, done by a copy of this process, as models need not be picklable.

    It is done here where processes cannot be copied: not on Linux, in a process that may have no children, or in one that
    uses CUDA already, which no copy may.

    Raises:
        ApartError: it raised, or its process was ended.
    """
    on_cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    if not sys.platform.startswith("linux") or multiprocessing.current_process().daemon or on_cuda:
        return work()
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which the copy does not have and does not wait for
        process = context.Process(target=_do, args=(work, sender), daemon=True)
        process.start()
    sender.close()
    try:
        made: bytes | str | None = receiver.recv()
    except EOFError:
        made = None
    except BaseException:
        process.kill()
        raise
    finally:
        receiver.close()
        process.join()
    if isinstance(made, bytes):
        return made
    raise ApartError(made or _end(process.exitcode or 0))


def _do(work: Callable[[], bytes], sender: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that was copied ends this one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)  # those of the process that was copied are not in the copy
    try:
        made: bytes | str = work()
    except Exception as error:
        made = f"{type(error).__name__}: {error}".strip()
    sender.send(made)
    sender.close()
    os._exit(0)  # what the process that was copied does at its end is not for the copy to do


def _end(code: int) -> str:
    """The signal that ended a process, or its exit code."""
    return f"its process was ended by {signal.Signals(-code).name}" if code < 0 else f"its process ended with exit code {code}"
