"""Latency on the command line: measured here, or elsewhere through files."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from lrsearch.cli.main import main
from lrsearch.latency import runner
from lrsearch.latency.table import LatencyTable


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch):
    monkeypatch.setattr(runner, "MOST_ROUNDS", runner.ROUNDS)


def test_profile_writes_a_table_and_says_what_it_is(write, capsys):
    assert main(["profile", write(), "--latency", "--out", "t/mine.json"]) == 0
    out, err = capsys.readouterr()
    table = LatencyTable.load(Path("t/mine.json"))
    assert f"onnxruntime {table.conditions.version}, threads 1, batch 1, float32, {runner.cpu()}, load " in out
    assert re.search(r"dense model 0\.\d{3} ms \(median [\d.]+\); 6 forms of 2 distinct layers, \d faster than dense\n", out)
    assert out.endswith("written to t/mine.json\n")
    assert err == ""


def test_options_are_conditions_of_the_table(write):
    assert main(["profile", write(), "--latency", "--backend", "torch", "--threads", "1", "--batch", "3"]) == 0
    conditions = json.loads(Path("tiny-latency.json").read_text())["conditions"]
    assert (conditions["backend"], conditions["threads"], conditions["batch"]) == ("torch", 1, 3)


def test_the_same_again_is_read_from_the_cache(write, monkeypatch):
    main(["profile", write(), "--latency", "--out", "a.json"])
    main(["profile", write(), "--latency", "--out", "b.json"])
    assert Path("a.json").read_text() == Path("b.json").read_text()


@pytest.mark.slow
def test_a_search_uses_what_was_measured(write, capsys):
    latency = {"backend": "onnxruntime"}
    path = write(latency=latency, objectives=["divergence", "latency_ms"], budget={"latency_ratio": 1.0})
    assert main(["search", path]) == 0
    out, err = capsys.readouterr()
    front = pd.read_csv("runs/tiny/front.csv")
    assert (front.latency_ms_ratio <= 1).all()
    assert f"{front.latency_ms[0]:.3f}" in out
    assert err == ""


@pytest.mark.slow
def test_elsewhere_through_files(write, capsys, folder):
    path = write()
    assert main(["latency", "pack", path, "--out", "packed"]) == 0
    assert re.search(r"7 models, 0 MiB, in packed: copy it to the device, run `python runner\.py` there", capsys.readouterr().out)
    subprocess.run([sys.executable, "-I", "packed/runner.py"], check=True, capture_output=True)
    shutil.move("packed/times.json", "times.json")
    assert main(["latency", "ingest", path, ".", "--out", "device.json"]) == 0
    table = LatencyTable.load(folder / "device.json")
    assert (table.conditions.backend, table.conditions.cpu) == ("onnxruntime", runner.cpu())
    assert main(["search", path, "--set", "latency.table=device.json", "--set", "budget={latency_ratio: 1.0}"]) == 0


STANDARDISED = """
import torch
from timm.layers import StdConv2d
from torch import nn

def model():
    torch.manual_seed(0)
    return nn.Sequential(StdConv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 3))
"""


@pytest.mark.slow
def test_what_is_measured_is_the_model_that_a_search_sees(write, folder):
    """That is the prepared one: a weight-standardised convolution is one of its layers."""
    (folder / "zoo2.py").write_text(STANDARDISED)
    path = write(model={"call": "zoo2:model"})
    assert main(["profile", path, "--latency", "--out", "mine.json"]) == 0
    assert main(["search", path, "--set", "latency.table=mine.json", "--set", "budget={latency_ratio: 1.0}"]) == 0


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["profile", "--latency", "--backend", "tflite"], r"latency\.backend: must be a backend; got tflite"),
        (["profile", "--latency", "--threads", "0"], r"latency\.threads"),
        (["latency", "pack", "--out", "tiny.yaml"], r"tiny\.yaml: the folder must be writable"),
        (["latency", "pack", "--out", "p", "--set", "latency.backend=torch"], r"elsewhere, ONNX Runtime alone.*got torch"),
        (["latency", "ingest", "nowhere", "--out", "t.json"], r"nowhere/times\.json: the file must be readable"),
        (["search", "--set", "budget={latency_ms: 1}"], r"needs latency, such as latency"),
        (["search", "--set", "latency.table=nowhere.json"], r"nowhere\.json: the file must be readable"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(write, capsys, command, message):
    study = 2 if command[0] == "latency" else 1
    assert main([*command[:study], write(), *command[study:]]) == 2
    err = capsys.readouterr().err
    assert re.match(rf"lrsearch: .*{message}", err)
    assert err.count("\n") == 1


def test_profile_must_be_told_what(write, capsys):
    with pytest.raises(SystemExit):
        main(["profile", write()])
    assert "--latency" in capsys.readouterr().err
