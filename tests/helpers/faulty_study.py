"""A tiny study in processes of its own, and what must hold of it after any fault."""

import multiprocessing
import os
import resource
import sys
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import optuna
import pandas as pd
import yaml

from lrsearch.compress import artifact

PROCESSES = multiprocessing.get_context("forkserver")  # forked from one that has imported what takes seconds
PROCESSES.set_forkserver_preload(["lrsearch.workflows.search", "lrsearch.cli.search", "lrsearch.task.choose", "timm"])
MOST_SAID = 2**16  # bytes that a pipe holds
ZOO = '''
import torch
from torch import nn

def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 3)).eval()

def data(seed, n=40):
    return torch.randn(n, 12, generator=torch.Generator().manual_seed(seed)), torch.arange(n) % 3
'''
STUDY = {
    "model": {"call": "zoo:model"},
    "data": {role: {"call": "zoo:data", "args": {"seed": i}} for i, role in enumerate(("calibration", "score", "train"))},
    "space": {"rules": [{"density": {"min": 0.1, "max": 0.8, "steps": 3}, "rank_ratio": {"min": 0.2, "max": 0.5, "steps": 2}}]},
    "budget": {"params": 0.7},
    "search": {"trials": 4, "control_points": 1, "lowest": 0.2, "sampler": "random"},
    "proxy": {"finetune": {"steps": 4, "rungs": 2, "batch": 10}},
}


@dataclass
class Study:
    """A study file in a folder of its own.

    Attributes:
        home: where it is run.
        cache: of profiles.
    """

    home: Path
    cache: Path
    name: str = "tiny"
    before: set = field(default_factory=set)

    @property
    def folder(self) -> Path:
        return self.home / "runs" / self.name

    def begin(self, largest_file=None):
        """The search in a process and a session of its own; what it says is read by :func:`ended`."""
        environment, said = {"LRSEARCH_CACHE": str(self.cache)}, self.home / f"said-{time.monotonic_ns()}"
        os.mkfifo(said)  # no file, which could be too large
        reader = os.open(said, os.O_RDONLY | os.O_NONBLOCK)
        process = PROCESSES.Process(target=_search, args=(self.home, f"{self.name}.yaml", environment, said, largest_file))
        process.start()
        process.said, process.pipe = reader, said
        return process

    def run(self, **how):
        """The same to its end: exit code, and the last line that it wrote to stderr."""
        return ended(self.begin(**how))

    def finished(self):
        """The numbers of the trials that are finished; none where there is no study."""
        if not (self.folder / "study.db").exists():
            return set()
        try:
            storage = optuna.storages.RDBStorage(f"sqlite:///{self.folder / 'study.db'}")
            with closing(storage.engine.raw_connection()):
                trials = optuna.load_study(study_name=None, storage=storage).get_trials()
            storage.engine.dispose()
        except Exception:
            return set()  # it was not even made
        return {t.number for t in trials if t.state.name == "COMPLETE"}

    def whole_after(self, kept):
        """The next run ends with the trials ``kept``, and a whole front."""
        code, said = self.run()
        assert code == 0, said
        assert kept <= self.finished()
        front = pd.read_csv(self.folder / "front.csv")
        assert len(front)
        assert all(artifact.whole(self.folder / model) for model in front.model)
        assert {p.name for p in (self.folder / "models").iterdir()} == {Path(model).name for model in front.model}
        assert not [p for p in (*self.folder.rglob("*"), *self.cache.rglob("*")) if ".writing" in p.name]
        numbers = ("index", "trial", "model")  # a trial that was interrupted has had one
        rows = front.drop(columns=[c for c in front if c in numbers or "time" in c or "seconds" in c])
        return rows.round(5)


def warm():
    """Start what processes are forked from."""
    process = PROCESSES.Process(target=int)
    process.start()
    process.join()


def _search(home, study, environment, said, largest_file):
    """``lrsearch search``, as a shell runs it."""
    os.setsid()
    os.chdir(home)
    os.environ.update(environment)
    sys.path.insert(0, str(home))
    for stream in (1, 2):
        os.dup2(os.open(said if stream == 2 else os.devnull, os.O_WRONLY), stream)
    if largest_file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    from lrsearch.cli.main import main

    sys.exit(main(["search", study]))


def ended(process, seconds=240):
    """Exit code, negative if a signal ended it, and the last line that it wrote to stderr."""
    process.join(seconds)
    err = os.read(process.said, MOST_SAID).decode(errors="replace")
    os.close(process.said)
    process.pipe.unlink()
    assert process.exitcode is not None, err
    assert "Traceback" not in err, err
    return process.exitcode, (err.strip().splitlines() or [""])[-1]


def made(home, cache):
    home.mkdir()
    (home / "zoo.py").write_text(ZOO)
    (home / "tiny.yaml").write_text(yaml.safe_dump(STUDY))
    return Study(home, cache)
