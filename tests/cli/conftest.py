"""A folder as a user has it: a study file, and a module with a model and data."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from lrsearch.cli.main import main

ZOO = '''
import torch
from torch import nn

def model(bias=0.0):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 3))
    nn.init.constant_(net[4].bias, bias)
    with torch.no_grad():
        net[4].weight.mul_(20)
    return net

def without_layers():
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())

def data(seed, n=30, channels=3, classes=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, channels, 8, 8, generator=generator), torch.arange(n) % classes

def margin(outputs, labels):
    return float(outputs.max())
'''


@pytest.fixture
def folder(tmp_path, monkeypatch, session_cache) -> Path:
    monkeypatch.setenv("LRSEARCH_CACHE", str(session_cache))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "zoo.py").write_text(ZOO)
    yield tmp_path
    for name in ("zoo", "zoo2"):
        sys.modules.pop(name, None)


@pytest.fixture
def study(folder) -> dict:
    """The study file as data; ``write`` puts it into ``tiny.yaml``."""
    return {
        "model": {"call": "zoo:model"},
        "data": {"calibration": {"call": "zoo:data", "args": {"seed": 1}}, "score": {"call": "zoo:data", "args": {"seed": 2}}},
        "space": {"rules": [{
            "families": ["sparse", "low-rank"], "density": {"min": 0.1, "max": 0.8, "steps": 4},
            "rank_ratio": {"min": 0.2, "max": 0.5, "steps": 2},
        }]},
        "budget": {"params": 0.7},
        "search": {"trials": 2, "control_points": 1, "lowest": 0.2, "sampler": "random"},
    }


@pytest.fixture
def write(folder, study):
    def write(**changes) -> str:
        (folder / "tiny.yaml").write_text(yaml.safe_dump({**study, **changes}))
        return "tiny.yaml"

    return write


@pytest.fixture(scope="session")
def searched(tmp_path_factory) -> Callable[[], None]:
    """Searches ``tiny.yaml``: each such file once, then what that left is copied."""
    finished = {}

    def search() -> None:
        text = Path("tiny.yaml").read_text()
        if text not in finished:
            assert main(["search", "tiny.yaml"]) == 0
            finished[text] = shutil.copytree("runs", tmp_path_factory.mktemp("searched") / "runs")
        else:
            shutil.copytree(finished[text], "runs")

    return search


@pytest.fixture
def path(write, searched, capsys) -> str:
    """The file of a study that has been searched."""
    path = write()
    searched()
    capsys.readouterr()
    return path
