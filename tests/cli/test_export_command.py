"""The export and verify commands: a model of the front, with its certificate."""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

import lrsearch
from lrsearch.cli.main import main
from lrsearch.errors import ConfigError
from lrsearch.latency.runner import Timing
from lrsearch.report.certificate import Certificate, Check
from lrsearch.spec.config import StudyConfig
from lrsearch.workflows.steps import export_folder as export
from lrsearch.workflows.steps import retime

OUT = Path("runs/tiny/export")
WRITTEN = {"certificate.json", "certificate.md", "README.md"}


@pytest.fixture
def quick(monkeypatch, capsys):
    """In this process, without ONNX and without a clock."""
    def certified(folder: Path, config: StudyConfig) -> Certificate:
        Path("whole.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
        main(["verify", str(folder), "--study", "whole.yaml", "--write"])
        capsys.readouterr()
        return Certificate.load(folder)

    def refuse(*_):
        raise ConfigError("no exporter", value="-", place="-", remedy="-")

    monkeypatch.setattr(export, "certified", certified)
    monkeypatch.setattr(export, "onnx_form", refuse)
    monkeypatch.setattr(retime, "interleaved", lambda models, threads, rounds: [Timing(1.0, 1.0, 1.0, 1.0, 1)] * len(models))
    monkeypatch.setattr(type(retime.backend("onnxruntime")), "build", lambda *_: None)


@pytest.mark.slow
def test_a_fresh_process_certifies_the_best_that_satisfies_the_conditions(path, capsys):
    assert main(["export", path, "--pick", "params_ratio<=0.6"]) == 0
    out, err = capsys.readouterr()
    front = pd.read_csv("runs/tiny/front.csv")
    best = front[front.params_ratio <= 0.6].sort_values("divergence").iloc[0]
    assert {p.name for p in OUT.iterdir()} == {"weights.safetensors", "plan.json", "model.onnx", *WRITTEN}
    card = (OUT / "README.md").read_text()
    assert f"| parameters | {best.params:,} |" in card
    assert "model = lrsearch.load(folder, base=dense_model)" in card
    assert (OUT / "plan.json").read_bytes() == (Path("runs/tiny") / best.model / "plan.json").read_bytes()
    found = json.loads((OUT / "certificate.json").read_text())
    assert found["passed"]
    assert found["figures"]["params"] == best.params
    assert found["figures"]["divergence"] == pytest.approx(best.divergence, abs=1e-3)
    assert not found["unchecked"]
    assert "# tiny: passed" in out
    assert f"written to {OUT}" in out
    assert out.endswith(f"lrsearch verify {OUT} --study tiny.yaml\n")
    assert err == ""


def test_verify_repeats_it_anywhere(path, quick, capsys, folder):
    assert main(["export", path, "--index", "0", "--out", "shipped"]) == 0
    shutil.move("shipped", "elsewhere")
    shutil.rmtree("runs")
    before = Path("elsewhere/certificate.json").read_text()
    assert main(["verify", "elsewhere", "--study", path]) == 0
    assert main(["verify", "elsewhere", "--study", path, "--set", "budget={params: 0.01}"]) == 1
    assert re.search(r"\| budget params \|.*\*\*FAIL\*\*", capsys.readouterr().out)
    assert Path("elsewhere/certificate.json").read_text() == before
    import zoo

    with torch.no_grad():
        assert lrsearch.load("elsewhere", zoo.model())(torch.ones(1, 3, 8, 8)).shape == (1, 3)


def test_data_that_are_not_here_are_not_checked(path, quick, capsys, folder):
    main(["export", path, "--index", "0"])
    zoo = (folder / "zoo.py").read_text()
    data = zoo.index("def data")
    import zoo as module

    module.__dict__.pop("data")
    (folder / "zoo.py").write_text(zoo[:data])
    assert main(["verify", str(OUT), "--study", path]) == 0
    assert re.search(r"\| divergence \| \| \| \| not checked: data\.score", capsys.readouterr().out)


def test_a_member_that_misses_a_limit_is_refused_and_the_next_one_taken(path, quick, monkeypatch, capsys):
    made, notes, certified = [], [], export.certified

    def strict(folder: Path, config: StudyConfig) -> Certificate:
        made.append(json.loads((folder / "plan.json").read_text())["plan"])
        notes.append(capsys.readouterr().out)
        whole = certified(folder, config)
        slow = Check("budget latency_ms", 5.5, "at most", 5.0, len(made) > 1, -0.1)
        Certificate(whole.origin, (*whole.checks, slow), whole.figures, whole.unchecked, whole.conditions).save(folder)
        return Certificate.load(folder)

    monkeypatch.setattr(export, "certified", strict)
    assert main(["export", path]) == 0
    front = pd.read_csv("runs/tiny/front.csv").sort_values("divergence")
    assert json.loads((OUT / "plan.json").read_text())["plan"] == made[1]
    refused = json.loads((OUT / "certificate.json").read_text())["origin"]["refused"]
    assert refused == {front.model.iloc[0]: "budget latency_ms: 5.5, to be at most 5 (missed by 10.0%)"}
    assert "note: refused models/" in notes[1]


def test_where_all_miss_nothing_is_written_and_one_asked_for_is(path, quick, monkeypatch, capsys):
    certified = export.certified

    def strict(folder: Path, config: StudyConfig) -> Certificate:
        whole = certified(folder, config)
        return Certificate(whole.origin, (Check("budget latency_ms", 5.5, "at most", 5.0, False, -0.1),))

    monkeypatch.setattr(export, "certified", strict)
    assert main(["export", path]) == 1
    assert "nothing written" in capsys.readouterr().out
    assert not OUT.exists()
    assert main(["export", path, "--index", "0"]) == 1
    assert OUT.exists()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["--pick", "speed<1"], r"--pick: must be column.*Columns: trial, "),
        (["--pick", "params_ratio<0.001"], r"a member of the front must satisfy every condition"),
        (["--index", "99"], r"--index: must be a row of the front, 0 to \d+; got 99"),
        (["--study-folder", "runs"], r"runs: the folder must hold a study"),
        (["--set", "budget.params=0.5"], r"must belong to this configuration; got budget\.params was 0\.7, is 0\.5"),
        (["--out", "."], r"only an exported folder may be replaced"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(path, quick, capsys, command, message):
    assert main(["export", path, *command]) == 2
    err = capsys.readouterr().err
    assert re.match(rf"lrsearch: .*{message}", err)
    assert err.count("\n") == 1


def test_a_tampered_folder_is_one_line_and_exit_code_2(path, quick, capsys):
    main(["export", path, "--index", "0"])
    capsys.readouterr()
    (OUT / "plan.json").write_text("{}")
    assert main(["verify", str(OUT)]) == 2
    assert re.fullmatch(r"lrsearch: .*plan\.json: every byte must be as it was exported.*\n", capsys.readouterr().err)
    assert main(["verify", "runs"]) == 2
    assert "runs/certificate.json: the folder must hold a certificate" in capsys.readouterr().err


def test_a_fresh_process_that_fails_is_one_line(path, monkeypatch, capsys):
    monkeypatch.setattr(export.sys, "executable", "/bin/false")
    monkeypatch.setattr(export, "onnx_form", lambda *_: b"")
    assert main(["export", path, "--index", "0"]) == 2
    assert re.search(r"a fresh process must be able to verify the exported model", capsys.readouterr().err)
    assert not OUT.exists()


def test_the_report_has_the_certificate_at_once(path, quick, capsys):
    page = Path("runs/tiny/report.html")
    assert '"certificates": []' in page.read_text()
    main(["export", path, "--index", "0"])
    assert f"Next, here or on another machine: lrsearch verify {OUT} --study {path}\n" in capsys.readouterr().out
    passed = f'"title": "row 0 of the front, {pd.read_csv(page.with_name("front.csv")).model[0]}: passed"'
    assert passed in page.read_text()
    assert main(["verify", str(OUT), "--study", path, "--set", "budget={params: 0.01}"]) == 1
    assert passed in page.read_text()  # nothing was written
    assert main(["verify", str(OUT), "--study", path, "--set", "budget={params: 0.01}", "--write"]) == 1
    assert passed.replace("passed", "FAILED") in page.read_text()
