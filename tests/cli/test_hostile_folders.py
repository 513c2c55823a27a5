"""Folders that come from others name code in every place there is: none of it runs, whoever opens them and however."""

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml

import lrsearch
from lrsearch.cli.main import main
from lrsearch.errors import ArtifactError, ConfigError, StudyError
from lrsearch.latency.runner import Timing
from lrsearch.report.certificate import Certificate
from lrsearch.study.checkpoint import load_state
from lrsearch.study.finetune_checkpoints import FinetuneCheckpoints
from lrsearch.study.study_folder import StudyFolder
from lrsearch.workflows.steps import export_folder as export
from lrsearch.workflows.steps import retime
from lrsearch.workflows.steps.export_folder import certified

OUT, MARK = Path("runs/tiny/export"), Path("ran")
EVIL = """
from pathlib import Path
Path("ran").touch()

def run(*_, **__):
    Path("ran").touch()
"""
SHELL = {"command": "touch ran"}


@pytest.fixture
def shipped(path, folder, monkeypatch, capsys) -> Path:
    """An exported folder with its certificate, and beside it, in the working directory, a module that leaves a mark."""
    def refuse(*_):
        raise ConfigError("no exporter", value="-", place="-", remedy="-")

    monkeypatch.setattr(export, "onnx_form", refuse)
    monkeypatch.setattr(retime, "interleaved", lambda models, threads, rounds: [Timing(1.0, 1.0, 1.0, 1.0, 1)] * len(models))
    monkeypatch.setattr(type(retime.backend("onnxruntime")), "build", lambda *_: None)
    monkeypatch.setattr(export, "certified", lambda made, _: Certificate.load(made))
    main(["export", path, "--index", "0"])
    capsys.readouterr()
    (folder / "evil.py").write_text(EVIL)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if Path(p) != folder])
    yield OUT
    sys.modules.pop("evil", None)


def lay(path: Path, keys: str, value: object) -> None:
    """Set what is at ``keys``, dot-separated, in a JSON file."""
    data = json.loads(path.read_text())
    *way, last = keys.split(".")
    node = data
    for key in way:
        node = node[key]
    node[last] = value
    path.write_text(json.dumps(data))


CLAIMS = {
    "model.call of a library": ("model", {"call": "os:system", "args": SHELL}),
    "model.call of the working directory": ("model", {"call": "evil:run"}),
    "model.timm with a checkpoint": ("model", {"timm": "test_resnet", "args": {"checkpoint_path": "evil.pt"}}),
    "model.timm of a folder": ("model", {"timm": "local-dir:."}),
    "data.score.call of a library": ("data.score", {"call": "os:system", "args": SHELL}),
    "data.score.call of the working directory": ("data.score", {"call": "evil:run"}),
    "data.calibration.call": ("data.calibration", {"call": "evil:run"}),
    "proxy.metric": ("proxy.metric", "evil:run"),
    "recover.augment": ("recover.augment", "evil:run"),
}


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("how", ["command", "other settings", "python"])
def test_verify_runs_nothing_that_a_certificate_names(shipped, capsys, claim, how):
    key, value = CLAIMS[claim]
    lay(shipped / "certificate.json", f"origin.config.{key}", value)
    before = list(sys.path)
    if how == "python":
        found = lrsearch.verify(shipped)
        assert found.unchecked["divergence"].startswith("needs the model, give --study")
    else:
        more = ["--set", "proxy.batch=7", "--set", "budget={params: 0.9}"] if how == "other settings" else []
        assert main(["verify", str(shipped), *more]) == 0
        assert "| divergence | | | | not checked: needs the model, give --study" in capsys.readouterr().out
    assert not MARK.exists()
    assert "evil" not in sys.modules
    assert sys.path == before


def test_the_settings_of_the_user_do_not_let_the_folders_code_run(shipped, capsys):
    lay(shipped / "certificate.json", "origin.config.data.score", {"call": "evil:run"})
    lay(shipped / "certificate.json", "origin.config.model", {"call": "evil:run"})
    for override in ("data.score.slice=[0, 10]", "data.score.args={}", "model.args={}"):
        assert main(["verify", str(shipped), "--set", override]) == 2
        assert "give exactly one of" in capsys.readouterr().err
    assert main(["verify", str(shipped), "--model", "zoo:model", "--trust"]) == 0
    assert "| divergence | | | | not checked: needs the score data, give --study" in capsys.readouterr().out
    assert not MARK.exists()


@pytest.mark.parametrize("claim", [c for c in CLAIMS if c.startswith("model")])
def test_load_runs_nothing_that_a_plan_names(shipped, claim):
    lay(shipped / "plan.json", "model", CLAIMS[claim][1])
    with pytest.raises(ArtifactError, match="Pass base="):
        lrsearch.load(shipped)
    (shipped / "certificate.json").unlink()  # a folder in models/ has none
    assert lrsearch.verify(shipped).unchecked["params"].startswith("needs the model, give --study")
    assert not MARK.exists()


def test_recover_runs_no_metric_that_a_study_folder_names(shipped):
    import zoo

    lay(Path("runs/tiny/study.json"), "config.proxy.metric", "evil:run")
    sets = {"calibration": zoo.data(1), "score": zoo.data(2), "train": zoo.data(3, 40)}
    with pytest.raises(ConfigError, match=r"lrsearch\.recover: metric: must be the study's metric.*Pass metric='evil:run', if you trust"):
        lrsearch.recover("runs/tiny", model=zoo.model(), **sets, index=0)
    assert not MARK.exists()


def test_ask_runs_nothing_that_a_study_folder_names(shipped):
    for key, value in (("model", {"call": "evil:run"}), ("data.score", {"call": "evil:run"}), ("proxy.metric", "evil:run")):
        lay(Path("runs/tiny/study.json"), f"config.{key}", value)
    lrsearch.ask("runs/tiny", lrsearch.Budget(params=0.5))
    assert not MARK.exists()


@pytest.mark.parametrize(
    "code", [["--study", "tiny.yaml"], ["--model", "zoo:model", "--trust", "--set", "data.score={call: 'zoo:data', args: {seed: 2}}"]],
)
def test_code_that_the_user_names_is_imported_from_the_working_directory(shipped, capsys, code):
    sys.modules.pop("zoo", None)
    before = list(sys.path)
    assert main(["verify", str(shipped), *code, "--write"]) == 0
    found = Certificate.load(shipped)
    assert {"params", "dense macs", "metric", "divergence", "budget params"} <= {c.name for c in found.checks}
    assert found.unchecked.keys() == {"onnx"}
    assert sys.path == before


def test_from_python_with_a_study_file(shipped):
    found = lrsearch.verify(shipped, study="tiny.yaml", budget={"params": 0.01})
    assert [c.name for c in found.failures] == ["budget params"]
    assert {"metric", "divergence"} <= {c.name for c in found.checks}


def test_a_study_file_stands_for_all_that_the_folder_says(shipped, study, write):
    lay(shipped / "certificate.json", "origin.config.model", {"call": "evil:run"})
    lay(shipped / "certificate.json", "origin.config.data.score", {"call": "evil:run"})
    lay(shipped / "certificate.json", "origin.config.proxy.metric", "evil:run")
    lay(shipped / "certificate.json", "origin.config.budget", {"params": 1.0})
    found = lrsearch.verify(shipped, study=write(budget={"params": 0.02}))
    assert [c.name for c in found.failures] == ["budget params"]
    assert not MARK.exists()


def test_code_needs_trust(shipped, capsys):
    assert main(["verify", str(shipped), "--model", "evil:run"]) == 2
    assert capsys.readouterr().err == "lrsearch: --model: code runs only if you trust it; got evil:run. Add --trust.\n"
    assert not MARK.exists()
    with pytest.raises(SystemExit):
        main(["verify", str(shipped), "--model", "zoo:model", "--study", "tiny.yaml"])


def test_another_model_than_the_studys_is_refused(shipped, capsys):
    assert main(["verify", str(shipped), "--model", "zoo:model", "--set", "model.args.bias=3.0", "--trust"]) == 2
    assert "the dense model must be the study's, value for value" in capsys.readouterr().err


def test_an_export_gives_the_fresh_process_its_study_and_keeps_no_copy(shipped, monkeypatch):
    seen = {}

    def run(command, **_):
        file = Path(command[command.index("--study") + 1])
        seen.update(config=yaml.safe_load(file.read_text()), file=file, private=file.parent.stat().st_mode & 0o077 == 0)
        raise KeyboardInterrupt

    monkeypatch.setattr(export.subprocess, "run", run)
    config = Certificate.load(shipped).origin.config
    with pytest.raises(KeyboardInterrupt):
        certified(shipped, config)
    assert seen["config"] == config.model_dump(mode="json")
    assert seen["private"]
    assert not seen["file"].parent.exists()


class Bomb:
    def __reduce__(self):
        return Path.touch, (MARK,)


def test_states_of_trainings_are_never_unpickled(shipped):
    torch.save({"identity": "mine", "weights": Bomb()}, "recovering-0001.pt")
    with pytest.raises(StudyError, match=r"recovering-0001\.pt: must be a training's state"):
        load_state(Path("recovering-0001.pt"), "mine")
    Path("paused").mkdir()
    torch.save({"identity": "plan 1", "weights": Bomb()}, "paused/0001.pt")
    study = StudyFolder(Path())
    study.blobs.adopt(["paused/0001.pt"])
    assert study.blobs.local("paused/0001.pt") is not None
    assert FinetuneCheckpoints(study).load(1) is None
    assert not MARK.exists()
