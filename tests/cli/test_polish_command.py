"""The polish command: one model of a study is fitted once more."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
import torch

import lrsearch
from lrsearch.cli import polish as cli
from lrsearch.cli.main import main
from lrsearch.workflows.steps.polish_folder import PolishReport


@pytest.fixture
def study(study) -> dict:
    """With enough examples: of a polish to few it is chance whether it helps."""
    study["data"]["calibration"]["args"]["n"] = 400
    return study


@pytest.fixture
def model(path) -> Path:
    """The front member with the largest divergence, which has most to gain."""
    front = pd.read_csv("runs/tiny/front.csv")
    return Path("runs/tiny") / front.model[front.divergence.idxmax()]


def test_the_polished_model_is_written_beside_the_other_and_said_to_be_better(path, model, capsys):
    assert main(["polish", path, str(model)]) == 0
    out, err = capsys.readouterr()
    target = model.with_name(f"{model.name}-polished")
    before, after = map(float, re.match(r"held-out divergence (\S+) -> (\S+) \(300 examples fitted, 100 held out\)\n", out).groups())
    assert after < before
    assert out.endswith(f"written to {target}\n")
    assert err == ""
    about = json.loads((target / "plan.json").read_text())
    assert about["plan"] == json.loads((model / "plan.json").read_text())["plan"]
    assert about["polished"] == {"held_out_divergence": pytest.approx(after, rel=5e-3), "before": pytest.approx(before, rel=5e-3)}


def test_the_polished_model_loads(path, model):
    assert main(["polish", path, str(model), "--out", "elsewhere/best"]) == 0
    import zoo

    with torch.no_grad():
        outputs = [lrsearch.load(folder, zoo.model())(torch.ones(2, 3, 8, 8)) for folder in ("elsewhere/best", model)]
    assert not torch.equal(*outputs)
    assert not model.with_name(f"{model.name}-polished").exists()


def test_a_polish_that_does_not_help_writes_nothing_and_says_so(path, model, capsys, monkeypatch):
    monkeypatch.setattr(cli.workflow, "polish", lambda *_, **__: PolishReport(0.01, 0.02, 22, 8, None))
    assert main(["polish", path, str(model)]) == 0
    assert capsys.readouterr().out == "held-out divergence 0.01 -> 0.02 (22 examples fitted, 8 held out)\nnot better; nothing written\n"


def test_overrides_lie_over_the_file(path, model, capsys):
    assert main(["polish", path, str(model), "--set", "proxy.held_out=0.5"]) == 0
    assert "(200 examples fitted, 200 held out)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("which", "overrides", "message"),
    [
        ("runs/tiny/models/9999", (), r"runs/tiny/models/9999/plan\.json: the folder must hold a plan\.json"),
        ("runs/tiny", (), r"runs/tiny/plan\.json: the folder must hold a plan\.json"),
        (None, ("model.call=zoo:modle",), r"model\.call.*zoo:modle"),
        (None, ("data.calibration.args={seed: 1, channels: 1}",), r"data\.calibration"),
        (None, ("proxy.held_out=2",), r"proxy\.held_out"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line_and_exit_code_2(path, model, capsys, which, overrides, message):
    arguments = [a for o in overrides for a in ("--set", o)]
    assert main(["polish", path, which or str(model), *arguments]) == 2
    out, err = capsys.readouterr()
    assert re.match(rf"lrsearch: .*{message}", err)
    assert (out, err.count("\n")) == ("", 1)
    assert not model.with_name(f"{model.name}-polished").exists()


def test_a_folder_of_a_study_must_be_named(path, capsys):
    assert main(["polish", path]) == 2
    assert re.match(r"lrsearch: .*must be a model folder in a study folder", capsys.readouterr().err)
