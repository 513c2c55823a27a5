"""What no one foresaw is one line too, with place and remedy; signals end a command in order."""

import errno
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from lrsearch.cli import search as cli
from lrsearch.cli.main import main
from lrsearch.cli.text import one_line, plain

ERRORS = {
    "foreign": (
        RuntimeError("the library\nis\x1b[31m broken"), r"RuntimeError: the library is\x1b[31m broken. This is not foreseen: --debug",
    ),
    "no message": (KeyError(), "KeyError: no message"),
    "full disk": (
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a/b.json"),
        "lrsearch: a/b.json: must be readable and writable; got No space left",
    ),
    "memory": (MemoryError(), "needs more memory; got no message. Set proxy.batch lower"),
    "recursion": (RecursionError("maximum recursion depth exceeded"), "RecursionError: maximum recursion depth"),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_a_foreign_exception_is_one_line_with_place_and_remedy(write, capsys, monkeypatch, kind):
    error, said = ERRORS[kind]

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(cli.workflow, "search", fail)
    assert main(["search", write()]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert "\x1b" not in err
    if kind != "full disk":
        assert err.startswith("lrsearch: lrsearch/cli/search.py:")
    with pytest.raises(type(error)):
        main(["search", write(), "--debug"])


SLOW = """
import time
from pathlib import Path
from zoo import *

def slow(outputs, labels):
    Path("scored").open("a").write(".")
    time.sleep(0.2)
    return float(outputs.mean())
"""


@pytest.mark.faults
@pytest.mark.parametrize(("sent", "code", "said"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")])
def test_a_signal_ends_with_a_line_and_a_front(folder, write, sent, code, said):
    (folder / "zoo2.py").write_text(SLOW)
    path = write(proxy={"metric": "zoo2:slow"}, search={"trials": 1000, "control_points": 1, "lowest": 0.2, "sampler": "random"})
    command = [sys.executable, "-m", "lrsearch", "search", path]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 200
    while (not (folder / "scored").exists() or len((folder / "scored").read_text()) < 6) and time.monotonic() < until:
        time.sleep(0.1)
    running.send_signal(sent)
    _, err = running.communicate(timeout=100)
    assert running.returncode == code
    assert err.splitlines()[-1] == f"lrsearch: {said}; what is finished is kept, the same command goes on from there."
    assert len(pd.read_csv(folder / "runs" / "tiny" / "front.csv"))


@pytest.mark.parametrize("code", [
    "class Last:\n    def __del__(self): send()\nLast()",
    "import weakref\nclass Seen: pass\nseen = Seen()\nref = weakref.ref(seen, lambda _: send())\ndel seen",
], ids=["destructor", "weak reference"])
@pytest.mark.parametrize(("sent", "said"), [("SIGTERM", "Terminated()"), ("SIGINT", "KeyboardInterrupt()")])
def test_a_signal_that_python_drops_ends_the_command_all_the_same(code, sent, said):
    lines = f"""
import os, signal, time
from lrsearch.cli.main import _terminated_like_interrupted
def send():
    os.kill(os.getpid(), signal.{sent})
    for _ in range(1000): pass
try:
    with _terminated_like_interrupted():
        exec({code!r})
        time.sleep(20)
except KeyboardInterrupt as error:
    print(repr(error))
"""
    ran = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, timeout=60)
    assert (ran.stdout.strip(), ran.stderr) == (said, "")


def test_signal_handlers_are_put_back(write):
    before = signal.getsignal(signal.SIGTERM)
    assert main(["search", "nowhere"]) == 2
    assert signal.getsignal(signal.SIGTERM) is before


def test_names_are_shown_as_text():
    assert plain("a\x1b[31mb\x07\ud800\nc") == "a\\x1b[31mb\\x07\\ud800\nc"
    assert one_line("a\n b" + "x" * 5000).startswith("a b")
    assert len(one_line("x" * 5000)) < 700


MARKUP = """
import torch
from torch import nn

def model():
    torch.manual_seed(0)
    net = nn.Sequential()
    net.add_module("[red]a[", nn.Flatten())
    net.add_module("[bold]b\\x1b[2J", nn.Linear(192, 3))
    net.add_module("[/]", nn.Identity())
    return net
"""


def test_markup_and_escapes_in_the_names_of_layers(folder, write, capsys):
    (folder / "zoo2.py").write_text(MARKUP)
    assert main(["layers", write(model={"call": "zoo2:model"})]) == 0
    out = capsys.readouterr().out
    assert "[bold]b\\x1b[2J" in out
    assert "\x1b[2J" not in out
