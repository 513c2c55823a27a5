"""The init command: a study file that is read back as it was meant."""

from pathlib import Path

import pytest

from lrsearch.cli.main import main
from lrsearch.cli.named import config_of
from lrsearch.cli.parser import parser
from lrsearch.spec.shipped import load_study


def images(folder: Path, count: int) -> None:
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            (folder / name / f"{i}.JPG").touch()


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_one_folder_of_images_is_sliced_apart(capsys):
    images(Path("photos"), 50)
    assert main(["init", "--timm", "resnet18", "--images", "photos"]) == 0
    config = load_study("study.yaml")
    assert (config.model.timm, config.model.pretrained, config.budget) == ("resnet18", True, {"params": 0.5})
    assert [(s.folder, s.slice) for s in (config.data.calibration, config.data.train, config.data.score)] == [
        (Path("photos"), (0, 25)), (Path("photos"), (0, 25)), (Path("photos"), (25, 100))]
    assert capsys.readouterr().out.endswith("  lrsearch layers study.yaml\n  lrsearch search study.yaml\n")


def test_train_and_validation_folders_stay_what_they_are():
    images(Path("photos/train"), 20)
    images(Path("photos/val"), 5)
    assert main(["init", "--timm", "resnet18", "--images", "photos", "--checkpoint", "mine.safetensors", "--out", "a.yaml"]) == 0
    config = load_study("a.yaml")
    assert (config.model.checkpoint, config.model.args) == (Path("mine.safetensors"), {"num_classes": 2})
    assert [(str(s.folder), s.slice) for s in (config.data.calibration, config.data.train, config.data.score)] == [
        ("photos/train", (0, 10)), ("photos/train", (10, 40)), ("photos/val", None)]


def test_a_module_is_read_and_not_run():
    Path("mine.py").write_text("raise SystemExit('ran')\ndef _hidden(): ...\ndef build_net(depth=3): ...\ndef data(split, n=3): ...\n")
    assert main(["init", "mine.py"]) == 0
    config = load_study("study.yaml")
    assert config.model.call == "mine:build_net"
    assert (config.data.score.call, config.data.score.args) == ("mine:data", {"split": "score"})


def test_search_and_layers_take_the_same_without_a_file():
    images(Path("photos"), 50)
    given = ["--timm", "resnet18", "--images", "photos", "--checkpoint", "mine.safetensors"]
    assert main(["init", *given, "--out", "resnet18-photos.yaml"]) == 0
    for command in ("search", "layers"):
        args = parser().parse_args([command, *given, "--set", "search.trials=3"])
        assert config_of(args) == load_study("resnet18-photos.yaml", ["search.trials=3"])


@pytest.mark.parametrize("arguments", [
    ["search"], ["layers", "--timm", "resnet18"], ["search", "digits", "--timm", "resnet18", "--images", "photos"],
    ["search", "--images", "photos"], ["search", "digits", "--checkpoint", "mine.safetensors"],
])
def test_a_study_or_images_are_to_be_given(arguments, capsys):
    assert main(arguments) == 2
    assert f"lrsearch {arguments[0]}: give either a study, or --timm with --images" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "message"), [
    ([], "give a module, or --timm with --images"), (["--timm", "resnet18"], "give a module, or --timm"),
    (["--timm", "resnet18", "--images", "nowhere"], "must be a folder of class folders with images; got 0 folders"),
    (["empty.py"], "must define a function that makes the model"), (["gone.py"], "must be a Python module"),
    (["empty.py", "--out", "empty.py"], "must not exist yet"),
])
def test_what_is_wrong_is_one_line_and_nothing_is_written(arguments, message, capsys):
    Path("empty.py").touch()
    assert main(["init", *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not Path("study.yaml").exists()
