"""A tiny study in processes of its own, and what must hold of it after any fault."""

import os
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import optuna
import pandas as pd
import yaml

from lrsearch.compress import artifact

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

    def begin(self, **how):
        """The search in a process; its output is read by :func:`ended`."""
        environment = {**os.environ, "LRSEARCH_CACHE": str(self.cache), "PYTHONPATH": os.pathsep.join([str(self.home), *sys.path])}
        command = [sys.executable, "-m", "lrsearch", "search", f"{self.name}.yaml"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(
            command, cwd=self.home, env=environment, text=True, start_new_session=True, **pipes, **how,
        )

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
                trials = optuna.load_study(study_name="study", storage=storage).get_trials()
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
        rows = front.drop(columns=[c for c in front if "time" in c or "seconds" in c])
        return rows.round(5)


def ended(process, seconds=240):
    _, err = process.communicate(timeout=seconds)
    assert "Traceback" not in err, err
    return process.returncode, (err.strip().splitlines() or [""])[-1]


def made(home, cache):
    home.mkdir()
    (home / "zoo.py").write_text(ZOO)
    (home / "tiny.yaml").write_text(yaml.safe_dump(STUDY))
    return Study(home, cache)
