import logging
import re

import pytest

from lrsearch.cli.main import main
from lrsearch.errors import LrsearchError


def source(**changes):
    calibration = {"call": "zoo:data", "args": {"seed": 1}}
    return {"calibration": calibration, "score": {"call": "zoo:data", "args": {"seed": 2}}, **changes}


CHANGES = {
    "unknown key": ({"serach": {"trials": 2}}, r"tiny\.yaml: serach: unknown key; got serach\. Did you mean 'search'\?"),
    "unknown key inside": ({"search": {"trails": 2}}, r"search\.trails: unknown key.*Did you mean 'trials'\?"),
    "wrong value": ({"search": {"trials": 0}}, r"tiny\.yaml: search\.trials"),
    "no model": ({"model": None}, r"tiny\.yaml: model"),
    "no data": ({"data": None}, r"tiny\.yaml: data"),
    "unknown objective": ({"objectives": ["divergence", "speed"]}, r"tiny\.yaml: objectives"),
    "layer pattern": ({"space": {"rules": [{"layers": ["blocks.*"]}]}}, r"space\.rules.*blocks\.\*"),
    "space": ({"space": "spaceship"}, "spaceship.*mobilenetv3"),
    "module of the model": ({"model": {"call": "zo:model"}}, r"model\.call.*zo:model"),
    "function of the model": ({"model": {"call": "zoo:modle"}}, r"model\.call.*zoo:modle"),
    "argument of the model": ({"model": {"call": "zoo:model", "args": {"depth": 3}}}, "depth"),
    "name in timm": ({"model": {"timm": "resnet_nope"}}, r"model\.timm.*resnet_nope"),
    "function of the data": ({"data": source(score={"call": "zoo:date"})}, r"data\.score.*zoo:date"),
    "folder of the data": ({"data": source(score={"folder": "images/val"})}, r"data\.score.*images/val"),
    "slice of the data": ({"data": source(score={"call": "zoo:data", "args": {"seed": 2}, "slice": [0, 31]})}, r"data\.score\.slice"),
    "shape of the data": (
        {"data": source(calibration={"call": "zoo:data", "args": {"seed": 1, "channels": 1}})}, "calibration data; got RuntimeError",
    ),
    "shape of the score data": ({"data": source(score={"call": "zoo:data", "args": {"seed": 2, "channels": 1}})}, "score"),
    "labels": ({"data": source(score={"call": "zoo:data", "args": {"seed": 2, "classes": 4}})}, r"data\.score: labels.*below 3"),
    "overlap": ({"data": source(score={"call": "zoo:data", "args": {"seed": 1}})}, r"data\.calibration and data\.score.*30 inputs in both"),
    "no layer": ({"model": {"call": "zoo:without_layers"}}, "at least one Linear layer or convolution"),
    "budget": ({"budget": {"params": 0.01}}, r"budget\.params.*smallest possible is [\d,]+"),
    "budget of no metric": ({"budget": {"speed": 0.5}}, "unknown metric 'speed'"),
    "budget of no number": ({"budget": {"params": -1}}, r"budget\.params.*got -1"),
    "device": ({"device": "abacus"}, "device: .*abacus"),
    "finetuning without data": ({"proxy": {"finetune": {"steps": 3}}}, r"proxy\.finetune\.steps"),
    "metric": ({"proxy": {"metric": "zoo:accuracy"}}, r"proxy\.metric.*zoo:accuracy"),
}


@pytest.mark.parametrize("wrong", CHANGES)
def test_a_wrong_study_is_one_line_and_exit_code_2(folder, write, capsys, wrong):
    change, message = CHANGES[wrong]
    path = write(**change)
    assert main(["search", path]) == 2
    err = capsys.readouterr().err
    assert re.match(rf"lrsearch: .*{message}", err)
    assert err.count("\n") == 1
    assert "Traceback" not in err
    with pytest.raises(LrsearchError):
        main(["search", path, "--debug"])


FILES = {
    "missing.yaml": (None, "missing.yaml.*Shipped: .*digits"),
    "broken.yaml": (b"model: {call: [\n", "broken.yaml: must be valid YAML"),
    "list.yaml": (b"- model\n", "list.yaml: must be a mapping"),
    "empty.yaml": (b"", "empty.yaml: must be a mapping"),
    "binary.yaml": (b"\xff\xfe\x00a", "binary.yaml: must be valid YAML"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("command", ["search", "layers"])
def test_a_file_that_is_no_study_is_one_line(folder, capsys, name, command):
    text, message = FILES[name]
    if text is not None:
        (folder / name).write_bytes(text)
    assert main([command, name]) == 2
    err = capsys.readouterr().err
    assert re.match(rf"lrsearch: .*{message}", err)
    assert err.count("\n") == 1


@pytest.mark.parametrize("override", ["search.trials", "=3", "search.trials=[", "name.x=1", "search.trails=3"])
def test_a_wrong_override_is_one_line(folder, write, capsys, override):
    assert main(["search", write(), "--set", override]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_folder_of_another_study_is_one_line(folder, write, capsys):
    assert main(["search", write()]) == 0
    capsys.readouterr()
    assert main(["search", write(budget={"params": 0.6})]) == 2
    err = capsys.readouterr().err
    assert re.match(r"lrsearch: runs/tiny: .*config\.budget\.params was 0\.7, is 0\.6.*--out", err)
    assert err.count("\n") == 1
    assert main(["search", write()]) == 0


def test_an_error_is_said_once_where_nothing_else_handles_the_log(folder, write, capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger("lrsearch"), "propagate", False)  # pytest's own handlers hide logging's last resort
    assert main(["search", write(budget={"params": 0.01})]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_error_is_in_the_log_of_the_study(folder, write):
    assert main(["search", write()]) == 0
    assert main(["search", write(budget={"params": 0.01})]) == 2
    assert "smallest possible" in (folder / "runs" / "tiny" / "search.log").read_text()


def test_a_notebook_shows_the_line_instead_of_a_traceback():
    error = LrsearchError("must be met", value=3, place="budget", remedy="Widen it.")
    assert error._render_traceback_() == ["LrsearchError: budget: must be met; got 3. Widen it."]
