"""Progress: what a study tells whoever watches it."""

import logging
import sys
import time
from collections.abc import Callable
from typing import TextIO

log = logging.getLogger("lrsearch")
SHORTEST = 0.5  # seconds: of less nothing is told
QUIET = 10.0  # seconds between lines of a stage, so that a log stays short


class Progress:
    """Silent. Override what you want to show."""

    def stage(self, title: str, total: int, done: int = 0) -> None:
        """A new stage of ``total`` steps begins, ``done`` of them already finished."""

    def advance(self, best: str = "") -> None:
        """One step of the stage is finished; ``best`` describes the best result so far."""

    def show(self, best: str) -> None:
        """The best result so far changed, with no step finished."""

    def expect(self, share: float) -> None:
        """So much of the stage's work is done, which tells the time left better than steps of different sizes do."""

    def note(self, text: str) -> None:
        """Something worth a line in the log."""


class LoggedProgress(Progress):
    """Counts, and sends every step to the package's log; subclasses show it.

    Args:
        clock: seconds, from any start.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock, self.title, self.total, self.done, self.best, self.share = clock, "", 0, 0, "", 0.0
        self.began = clock()

    def stage(self, title: str, total: int, done: int = 0) -> None:
        self.title, self.total, self.done, self.best, self.share = title, total, done, "", 0.0
        self.began, self._before = self.clock(), done
        self._log()

    def advance(self, best: str = "") -> None:
        self.done, self.best = self.done + 1, best
        self._log()

    def show(self, best: str) -> None:
        self.best = best
        self._log()

    def expect(self, share: float) -> None:
        self.share = share

    def note(self, text: str) -> None:
        log.info("%s", text)

    @property
    def left(self) -> float | None:
        """Seconds that the stage still takes, if all its work goes as fast as what is done; None before any is."""
        steps = self.total - self._before
        share = self.share or ((self.done - self._before) / steps if steps else 1.0)
        return (self.clock() - self.began) * (1 - share) / share if share > 0 else None

    @property
    def rest(self) -> str:
        """:attr:`left` in words; empty where nothing is left, or nobody knows how much."""
        left = self.left if self.done < self.total or self.share else None
        return f"{lasting(left)} left" if left and left >= SHORTEST else ""

    def _log(self) -> None:
        if self.title:
            log.info("%s: %d of %d done%s", self.title, self.done, self.total, self.best and f": {self.best}")

    _before = 0


class Lines(LoggedProgress):
    """A line when a stage begins and ends, and every few seconds between: for redirected output, scripts and notebooks.

    Args:
        stream: stdout if None: what is on stderr looks like an error in a notebook, and in a script's log.
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self._stream, self._last = stream, -QUIET

    def stage(self, title: str, total: int, done: int = 0) -> None:
        super().stage(title, total, done)
        self._print(f"{title}: {f'{done} of {total} done before' if done else f'{total} to do'}")

    def advance(self, best: str = "") -> None:
        super().advance(best)
        if self.done >= self.total > 1 or self.clock() - self._last >= QUIET:
            self._tell()

    def show(self, best: str) -> None:
        super().show(best)
        if self.clock() - self._last >= QUIET:
            self._tell()

    def _tell(self) -> None:
        self._print(f"{self.title}: {self.done} of {self.total}{self.rest and f', {self.rest}'}{self.best and f'; {self.best}'}")

    def note(self, text: str) -> None:
        super().note(text)
        self._print(f"note: {text}")

    def _print(self, text: str) -> None:
        self._last = self.clock()
        printable = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
        print(printable, file=self._stream or sys.stdout, flush=True)


def lasting(seconds: float) -> str:
    """``about 40 s``, ``about 3 min`` or ``about 2.5 h``."""
    if seconds < 90:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
