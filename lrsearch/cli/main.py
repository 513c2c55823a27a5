"""The command line: arguments → one call each. What goes wrong is one line on stderr, and an exit code.

Nothing heavy is imported before the study file was read and found to be right.
"""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from lrsearch.cli.parser import parser
from lrsearch.cli.text import one_line, unexpected
from lrsearch.errors import LrsearchError

FAILED, MISTAKE, INTERRUPTED, BROKEN_PIPE, TERMINATED = 1, 2, 128 + 2, 128 + 13, 128 + 15  # as shells name signals
SOON = 0.05  # seconds until a dropped interrupt is sent again
HANDLERS = {  # command → module in lrsearch.cli : function of the study's configuration, if the command reads one, and the arguments
    "init": "init:init",
    "search": "search:search", "layers": "layers:layers", "ask": "ask:ask", "report": "report:report", "front": "report:front",
    "worker": "machines:worker", "move": "machines:move",
    "polish": "polish:polish", "recover": "recover:recover", "fidelity": "fidelity:fidelity",
    "export": "export:export", "verify": "verify:verify",
    "profile": "latency:measure", "measure": "latency:measure", "pack": "latency:pack", "ingest": "latency:ingest",
}


class Terminated(KeyboardInterrupt):
    """SIGTERM came: the command ends as it does when it is interrupted."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = parser().parse_args(argv)
    try:
        with _terminated_like_interrupted():
            return _run(args)
    except KeyboardInterrupt as error:
        terminated = isinstance(error, Terminated)
        said = "terminated" if terminated else "interrupted"
        print(f"lrsearch: {said}; what is finished is kept, the same command goes on from there.", file=sys.stderr)
        return TERMINATED if terminated else INTERRUPTED
    except BrokenPipeError:  # whoever read the output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except Exception as error:
        if args.debug:
            raise
        said = str(error) if isinstance(error, LrsearchError) else unexpected(error)
        print(f"lrsearch: {one_line(said)}", file=sys.stderr)
        return MISTAKE


def _run(args: argparse.Namespace) -> int:
    config = None
    if args.reads_study:
        from lrsearch.cli.named import config_of

        config = config_of(args)
    module, _, function = HANDLERS[args.command].partition(":")
    code: int = getattr(import_module(f"lrsearch.cli.{module}"), function)(config, args)
    return code


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """A context in which SIGTERM raises :class:`Terminated`, once; only the main thread can be told of signals.

    Python drops what is raised in a destructor or a callback of a weak reference, an interrupt too: it is sent again.
    """
    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what is under way now is the end
        raise Terminated

    def dropped(what: Any) -> None:
        if not isinstance(what.exc_value, KeyboardInterrupt):
            told(what)
            return
        number = signal.SIGTERM if isinstance(what.exc_value, Terminated) else signal.SIGINT
        if number == signal.SIGTERM:
            signal.signal(signal.SIGTERM, end)
        threading.Timer(SOON, os.kill, (os.getpid(), number)).start()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, told = signal.signal(signal.SIGTERM, end), sys.unraisablehook
    sys.unraisablehook = dropped
    try:
        yield
    finally:
        sys.unraisablehook = told
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main())
