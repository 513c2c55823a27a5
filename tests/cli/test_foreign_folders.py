"""No command replaces or removes what lrsearch did not make: one line, exit code 2, everything as it was."""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from lrsearch.cli.main import main
from lrsearch.latency import runner
from lrsearch.report.certificate import Certificate, Check
from lrsearch.workflows.steps import export_folder as export

STUDY = Path("runs/tiny")


@pytest.fixture
def study(study):
    study["data"]["train"] = {"call": "zoo:data", "args": {"seed": 3, "n": 60}}
    return study


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Certificates without a process of their own, and few rounds of timing."""
    def certified(folder, _):
        made = Certificate(Certificate.load(folder).origin, (Check("params", 1.0, "=", 1.0, True),))
        made.save(folder)
        return made

    monkeypatch.setattr(export, "certified", certified)
    monkeypatch.setattr(export, "onnx_form", lambda *_: b"onnx")
    monkeypatch.setattr(runner, "MOST_ROUNDS", runner.ROUNDS)


def everything(folder):
    return {str(p): f"-> {p.readlink()}" if p.is_symlink() else p.read_bytes() if p.is_file() else None for p in Path(folder).rglob("*")}


def project(*names):
    for name in names:
        path = Path("project") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"mine": 1}')


def saved_model_with_notes():
    shutil.copytree(next((STUDY / "models").iterdir()), "project")
    project("notes.txt")


def link_to_a_project():
    project("models/a.txt")
    Path("out").symlink_to("project")


FOREIGN = {
    "names of ours": lambda: project("certificate.json", "plan.json", "runner.py", "models/0000.onnx", "jobs.json"),
    "more than ours": saved_model_with_notes,
    "plan.json": lambda: project("plan.json"),
    "runner.py": lambda: project("runner.py"),
    "a link": link_to_a_project,
}


def commands(path):
    model = str(STUDY / pd.read_csv(STUDY / "front.csv").model.iloc[-1])
    return {
        "export": ["export", path, "--index", "0"], "polish": ["polish", path, model],
        "recover": ["recover", path, "--index", "0", "--epochs", "1"], "pack": ["latency", "pack", path], "search": ["search", path],
    }


@pytest.mark.parametrize("foreign", FOREIGN)
@pytest.mark.parametrize("command", ["export", "polish", "recover", "pack", "search"])
def test_what_is_not_ours_is_refused_and_stays(path, capsys, command, foreign):
    FOREIGN[foreign]()
    out = "out" if foreign == "a link" else "project"
    before = everything("project")
    assert main([*commands(path)[command], "--out", out]) == 2
    assert re.fullmatch(rf"lrsearch: {out}: .*Give another --out\.\n", capsys.readouterr().err)
    assert everything("project") == before


@pytest.mark.parametrize("command", ["export", "polish", "recover"])
def test_an_empty_folder_and_what_the_same_command_wrote_may_be_written(path, command, monkeypatch):
    divergences = iter([2.0, 1.0, 2.0, 1.0])
    monkeypatch.setattr("lrsearch.train.batchnorm.Correction.divergence", lambda *_: next(divergences))
    monkeypatch.setattr("lrsearch.train.batchnorm.Correction.apply_if_better", lambda *_, **__: False)
    Path("out").mkdir()
    for _ in range(2):
        assert main([*commands(path)[command], "--out", "out"]) == 0
        assert (Path("out") / "plan.json").exists()
        assert not [p.name for p in Path().iterdir() if p.name.startswith(".")]


@pytest.mark.slow
def test_a_packed_folder_may_be_packed_again_and_keeps_its_times_and_what_links_lead_to(path):
    assert main(["latency", "pack", path, "--out", "packed"]) == 0
    jobs, mine = Path("packed/jobs.json").read_text(), Path("mine.txt")
    mine.write_text("mine")
    Path("packed/times.json").write_text("{}")
    Path("packed/runner.py").unlink()
    Path("packed/runner.py").symlink_to(mine.resolve())
    assert main(["latency", "pack", path, "--out", "packed"]) == 0
    assert Path("packed/times.json").read_text() == "{}"
    assert Path("packed/jobs.json").read_text() == jobs
    assert Path("packed/runner.py").read_bytes() == Path(runner.__file__).read_bytes()
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("command", [["profile", "tiny.yaml", "--latency"], ["latency", "ingest", "tiny.yaml", "packed"]])
def test_a_table_replaces_nothing_but_a_table(write, capsys, command):
    write()
    Path("notes.md").write_text("mine")
    assert main([*command, "--out", "notes.md"]) == 2
    assert re.fullmatch(r"lrsearch: notes\.md: only a latency table may be replaced; .*Give another --out\.\n", capsys.readouterr().err)
    assert Path("notes.md").read_text() == "mine"


def test_the_models_of_a_study_are_not_replaced_by_polished_or_recovered_ones(path, capsys):
    model = commands(path)["polish"][-1]
    before = everything(STUDY / "models")
    for command in ("polish", "recover", "export"):
        assert main([*commands(path)[command], "--out", model]) == 2
        assert "may be replaced" in capsys.readouterr().err
    assert everything(STUDY / "models") == before


@pytest.mark.parametrize("name", ["../../x", "", "..", "/x"])
def test_a_name_that_leads_elsewhere_is_one_line(folder, write, capsys, name):
    assert main(["search", write(), "--set", f"name={json.dumps(name)}"]) == 2
    assert re.fullmatch(r"lrsearch: tiny\.yaml: name: must be a name of printable characters without slashes.*\n", capsys.readouterr().err)
    assert not (folder / "runs").exists()


def test_a_refused_study_leaves_no_folder(folder, write, capsys):
    assert main(["search", write(budget={"params": 0.01})]) == 2
    assert not (folder / "runs").exists()
