"""A study folder is enough: no study file, no ``--set`` repeated; what is code is named once more."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
import yaml

import lrsearch
from lrsearch.cli.main import main
from lrsearch.errors import ConfigError
from lrsearch.study.identity import kept_settings
from lrsearch.study.study_folder import StudyFolder
from lrsearch.workflows import from_folder
from lrsearch.workflows.from_folder import code_in, config_alone, config_with

RUN = Path("runs/tiny")


@pytest.fixture
def trusted(monkeypatch):
    """As if the folder's model and data were lrsearch's own."""
    monkeypatch.setattr(from_folder, "OWN", {"zoo:model", "zoo:data"})


def test_open_brings_the_result_back_and_writes_nothing(path, folder):
    before = {p: p.stat().st_mtime_ns for p in RUN.rglob("*") if p.is_file() and not p.name.startswith("study.db")}
    result = lrsearch.open(RUN)
    front = pd.read_csv(RUN / "front.csv", index_col="index")
    assert list(result.front.model) == list(front.model)
    assert len(result.trials) == 6
    assert all(p.stat().st_mtime_ns == at for p, at in before.items())
    import zoo

    assert lrsearch.open(RUN, model=zoo.model()).load(0)(zoo.data(2)[0]).shape == (30, 3)


@pytest.mark.parametrize("command", ["layers", "search", "export", "recover", "fidelity", "profile"])
def test_code_that_a_folder_names_is_refused_in_one_line_that_names_study(path, capsys, command):
    assert main([command, str(RUN), *(["--latency"] if command == "profile" else [])]) == 2
    err = capsys.readouterr().err
    assert re.fullmatch(r"lrsearch: runs/tiny: model\.call: a folder may not say which code runs; got zoo:model\. .*--study FILE.*\n", err)


def test_what_needs_no_code_takes_the_folder(path, capsys):
    assert main(["ask", str(RUN), "--budget", "params=0.6", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["best"]["cost"]["params"] > 0
    assert main(["front", str(RUN), "--json"]) == 0
    assert [row["model"] for row in json.loads(capsys.readouterr().out)["front"]] == list(pd.read_csv(RUN / "front.csv").model)


@pytest.mark.parametrize("command", ["front", "report"])
def test_what_shows_a_study_takes_the_words_that_a_search_says_next(path, command, capsys):
    shown = []
    for words in ([str(RUN), "--study", path], [path, "--study-folder", str(RUN)]):
        assert main([command, *words]) == 0
        shown.append(capsys.readouterr().out)
        assert f"Next: lrsearch export runs/tiny --study {path} --index " in shown[-1]
    assert shown[0] == shown[1]
    assert main([command, str(RUN)]) == 0
    assert "--study FILE" in capsys.readouterr().out


def test_the_settings_of_the_search_need_not_be_repeated(write, folder, capsys):
    path = write()
    assert main(["search", path, "--out", "runs/other", "--set", "budget.params=0.6", "--trials", "1"]) == 0
    capsys.readouterr()
    config = config_with(Path("runs/other"), lrsearch_study(path))
    assert (config.budget, config.search.trials) == ({"params": 0.6}, 1)
    assert main(["search", "runs/other", "--study", path]) == 0
    assert not Path("runs/tiny").exists()
    assert main(["recover", "runs/other", "--study", path]) == 2
    assert "a recovery needs training data" in capsys.readouterr().err


def lrsearch_study(path):
    from lrsearch.spec.shipped import load_study

    return load_study(path)


def test_a_study_file_of_other_code_is_refused(path, capsys):
    study = yaml.safe_load(Path(path).read_text())
    study["model"]["args"] = {"bias": 1.0}
    Path("other.yaml").write_text(yaml.safe_dump(study))
    assert main(["export", str(RUN), "--study", "other.yaml"]) == 2
    assert "must belong to this configuration; got model.args" in capsys.readouterr().err
    assert main(["export", path, "--study", "other.yaml"]) == 2
    assert "--study: needs a study folder beside it" in capsys.readouterr().err


def test_without_code_the_folder_is_all_that_is_needed(path, trusted, capsys):
    assert main(["layers", str(RUN), "--json"]) == 0
    assert [row["layer"] for row in json.loads(capsys.readouterr().out)["layers"]] == ["0", "4"]
    model = pd.read_csv(RUN / "front.csv").model[0]
    assert main(["polish", str(RUN / model)]) == 0
    assert "held-out divergence" in capsys.readouterr().out
    Path("space.yaml").write_text("rules: [{families: [sparse], density: {min: 0.2, max: 0.6, steps: 2}}]")
    assert main(["layers", str(RUN), "--set", "space=space.yaml", "--json"]) == 0
    assert main(["search", str(RUN), "--trials", "3"]) == 0
    assert kept_settings(StudyFolder(RUN))["search"]["trials"] == 3


@pytest.mark.parametrize(("key", "value"), [
    ("proxy.metric", "zoo:margin"), ("task", "zoo:Task"), ("search.sampler", "zoo:make"), ("data.score.call", "os:system"),
    ("task", "evil-task:Task"), ("task", "a b:Task"), ("search.sampler", "evil-sampler:make"),
])
def test_every_place_of_code_is_looked_at(path, trusted, key, value):
    kept = json.loads((RUN / "study.json").read_text())
    *way, last = key.split(".")
    node = kept["config"]
    for part in way:
        node = node[part]
    node[last] = value
    (RUN / "study.json").write_text(json.dumps(kept))
    with pytest.raises(ConfigError, match=rf"{re.escape(key)}: a folder may not say which code runs; got {value}"):
        config_alone(RUN)
    with pytest.raises(ConfigError, match="may not say which code"):
        lrsearch.export(RUN)


def test_an_augmentation_of_the_users_is_code_too(path, trusted):
    kept = json.loads((RUN / "study.json").read_text())
    kept["besides"]["recover"]["augment"] = "zoo:data"
    (RUN / "study.json").write_text(json.dumps(kept))
    assert config_alone(RUN).recover.augment == "zoo:data"  # trusted here
    assert list(code_in({"recover": {"augment": "a:b"}, "task": "auto"})) == [("recover.augment", "a:b")]


def test_what_the_user_says_is_no_words_of_the_folder(path, trusted, monkeypatch):
    monkeypatch.setattr(from_folder, "OWN", {"zoo:data"})
    assert config_alone(RUN, ["model.call=zoo:model"]).model.call == "zoo:model"
    with pytest.raises(ConfigError, match=r"model\.call: a folder"):
        config_alone(RUN, ["model.args={}"])


@pytest.mark.parametrize(("model", "message"), [
    ({"timm": "local-dir:."}, "must name a model of timm"),
    ({"timm": "resnet10t", "args": {"checkpoint_path": "evil.pt"}}, "only plain settings may come from a folder"),
])
def test_a_model_of_timm_comes_with_plain_settings(path, trusted, model, message):
    kept = json.loads((RUN / "study.json").read_text())
    kept["config"]["model"] = model
    (RUN / "study.json").write_text(json.dumps(kept))
    with pytest.raises(ConfigError, match=message):
        config_alone(RUN)


def test_when_and_where_the_study_began_is_kept(path):
    made = json.loads((RUN / "study.json").read_text())["made"]
    assert made["lrsearch"] == lrsearch.__version__
    assert set(made) == {"date", "cpu", "lrsearch", "torch", "optuna"}
    assert main(["search", path]) == 0
    assert json.loads((RUN / "study.json").read_text())["made"] == made
