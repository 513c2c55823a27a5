"""Run README's main job in a terminal of 100 columns, and write what it shows as text, ``first_run.txt``, and its front, ``front.svg``.

    python docs/first_run.py [SECONDS]

The screen is written once every so many seconds, 60 by default, and at the end.
"""

import os
import pty
import re
import select
import struct
import sys
import tempfile
import time
from fcntl import ioctl
from pathlib import Path
from subprocess import Popen
from termios import TIOCSWINSZ

import lrsearch
from lrsearch.report.picture import front_picture

HERE = Path(__file__).parent
COLUMNS, ROWS = 100, 200
CONTROL = re.compile(r"\x1b\[(\?)?(\d*)(?:;\d+)*([A-Za-z])|(\r\n|\n|\r)|([^\x1b\r\n]+)|(\x1b)")


class Screen:
    """What a terminal shows, as far as progress bars and plain text need one."""

    def __init__(self) -> None:
        self.lines, self.row, self.column = [""], 0, 0

    def feed(self, text: str) -> None:
        for private, number, letter, newline, words, _ in CONTROL.findall(text):
            if words:
                line = self.lines[self.row].ljust(self.column)
                self.lines[self.row] = line[: self.column] + words + line[self.column + len(words) :]
                self.column += len(words)
            elif newline:
                self.row, self.column = self.row + ("\n" in newline), 0
                self.lines += [""] * (self.row + 1 - len(self.lines))
            elif letter == "A" and not private:
                self.row = max(0, self.row - int(number or 1))
            elif letter == "K" and not private:
                self.lines[self.row] = "" if number == "2" else self.lines[self.row][: self.column]

    def __str__(self) -> str:
        return "\n".join(line.rstrip() for line in self.lines).strip("\n")


def recorded(command: list[str], folder: Path, every: float) -> str:
    """What the terminal shows of ``command`` every so many seconds, and at its end."""
    own, terminal = pty.openpty()
    ioctl(terminal, TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": str(COLUMNS)}
    process = Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, cwd=folder, env=environment)
    os.close(terminal)
    screen, began, parts = Screen(), time.monotonic(), list[str]()
    while process.poll() is None or select.select([own], [], [], 0)[0]:
        if select.select([own], [], [], 0.2)[0]:
            try:
                screen.feed(os.read(own, 1 << 20).decode(errors="replace"))
            except OSError:  # the terminal was closed
                break
        if time.monotonic() - began > every * (len(parts) + 1):
            parts.append(f"[after {every * (len(parts) + 1):.0f} seconds]\n\n{screen}")
    assert process.wait() == 0, str(screen)
    return "\n\n".join([*parts, f"[the end, after {time.monotonic() - began:.0f} seconds]\n\n{screen}"]) + "\n"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        study = HERE.parent / "studies" / "digits.yaml"
        (Path(scratch) / "studies").symlink_to(study.parent)
        every = float(sys.argv[1]) if sys.argv[1:] else 60.0
        text = recorded([sys.executable, "-m", "lrsearch", "search", "studies/digits.yaml"], Path(scratch), every)
        result = lrsearch.open(Path(scratch) / "runs" / "digits")
        (HERE / "first_run.txt").write_text(f"$ lrsearch search studies/digits.yaml\n\n{text}")
        picture = front_picture(result.trials, result.objectives, f"{result.name}: quality against cost", result.unit)
        (HERE / "front.svg").write_text(picture)
