"""Commands from Python: the same function as on the command line, with a study file or with objects."""

import optuna
import pandas as pd
import pytest
import torch
from torch import nn

import lrsearch
from lrsearch.cli.main import main
from lrsearch.errors import ArtifactError, ConfigError, ModelError
from lrsearch.spec.shipped import load_study
from lrsearch.study import space_file
from lrsearch.study.study_folder import StudyFolder
from lrsearch.workflows.materials import settings_of

SPACE = {"rules": [{"families": ["sparse"], "density": {"min": 0.2, "max": 0.6, "steps": 2}}]}


@pytest.fixture
def searched(tiny_model, tiny_data, tmp_path, monkeypatch, session_cache):
    monkeypatch.setenv("LRSEARCH_CACHE", str(session_cache))
    x, y = tiny_data
    sets = {"calibration": (x[:80], y[:80]), "score": (x[80:], y[80:])}
    search = {"trials": 2, "control_points": 1, "lowest": 0.3, "sampler": "random"}
    result = lrsearch.search(tiny_model, **sets, space=SPACE, search=search, out=tmp_path / "study")
    return result, tiny_model, sets


def test_a_report_writes_the_same_files_from_the_storage(searched, capsys):
    result, model, _ = searched
    before = {name: (result.folder / name).read_bytes() for name in ("front.csv", "front.parquet")}
    for name in (*before, "report.html"):
        (result.folder / name).unlink()
    again = lrsearch.report(result.folder, model=model)
    pd.testing.assert_frame_equal(again.front, result.front)
    assert (result.folder / "front.csv").read_bytes() == before["front.csv"]
    assert (result.folder / "report.html").exists()
    assert again.load(0).state_dict().keys() == result.load(0).state_dict().keys()
    with pytest.raises(ConfigError, match=r"neither model nor data.*lrsearch\.export"):
        again.export()
    assert main(["report", str(result.folder)]) == 0
    assert "Front of study" in capsys.readouterr().out


def test_layers_are_those_that_the_search_had(searched):
    result, model, sets = searched
    found = lrsearch.layers(model, sets["calibration"], space=SPACE)
    assert set(found.frame.layer) == {s.name for s in space_file.load(StudyFolder(result.folder)).costs.layers}
    assert (found.frame.choices > 1).all()


def test_a_study_or_a_model_is_to_be_given(searched):
    result, model, sets = searched
    for call in (lrsearch.recover, lrsearch.fidelity, lrsearch.export, lrsearch.polish):
        with pytest.raises(ConfigError, match="give a study, or a model with its data; got neither"):
            call(result.folder / result.front.model[0] if call is lrsearch.polish else result.folder)
        with pytest.raises(ConfigError, match="give a study, or a model with its data; got both"):
            call(result.folder, study="digits", model=model)
        if call is not lrsearch.polish:
            with pytest.raises(ConfigError, match="the folder must hold a study; got none"):
                call(result.folder / "models")
    with pytest.raises(ArtifactError, match=r"the folder must hold a plan\.json"):
        lrsearch.polish(result.folder)
    with pytest.raises(ConfigError, match=r"data\.train: needs train data"):
        lrsearch.fidelity(result.folder, model=model, **sets)


def test_what_is_no_budget_is_said(tiny_model, tiny_data):
    with pytest.raises(ConfigError, match=r"must be a Budget; got 0\.3\. For example lrsearch\.Budget\(params=0\.3\)"):
        lrsearch.search(tiny_model, calibration=tiny_data, score=tiny_data, budget=0.3)
    with pytest.raises(ConfigError, match=r"MACs are half of FLOPs: name macs"):
        lrsearch.Budget(flops=0.5)


@pytest.mark.parametrize("command", [lrsearch.search, lrsearch.layers, lrsearch.profile])
@pytest.mark.parametrize("other", [None, nn.Linear, {"timm": "resnet18"}])
def test_what_is_neither_a_model_nor_a_study_is_refused(command, other):
    with pytest.raises(ModelError, match=r"^model: the model must be a torch.nn.Module; got \w+. Bring the module itself"):
        command(other)


def test_a_result_outlives_a_change_of_the_working_directory(tiny_model, tiny_data, tmp_path, monkeypatch, session_cache):
    monkeypatch.setenv("LRSEARCH_CACHE", str(session_cache))
    monkeypatch.chdir(tmp_path)
    x, y = tiny_data
    search = {"trials": 1, "control_points": 1, "lowest": 0.3, "sampler": "random"}
    result = lrsearch.search(tiny_model, calibration=x[:80], score=(x[80:], y[80:]), space=SPACE, search=search, out="runs/here")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert result.folder == tmp_path / "runs" / "here"
    assert result.load(0)(x[:2]).shape == (2, 4)


class Counting(nn.Module):
    """Counts its calls in a buffer, as running statistics do."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(12, 24), nn.Linear(24, 4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.head(self.layer(x).relu())


def test_a_model_that_writes_its_buffers_is_left_as_it_was(tmp_path, monkeypatch, session_cache):
    monkeypatch.setenv("LRSEARCH_CACHE", str(session_cache))
    model, x = Counting().eval(), torch.randn(60, 12)
    search = {"trials": 1, "control_points": 1, "lowest": 0.3, "sampler": "random"}
    assert len(lrsearch.search(model, calibration=x[:30], score=x[30:], space=SPACE, search=search, out=tmp_path / "study").front)
    assert len(lrsearch.layers(model, x[:30]).frame) == 2
    assert model.calls == 0


@pytest.mark.parametrize(("said", "objectives"), [
    ("budget: {params: 0.5}", ("divergence", "weight_bytes")), ("budget: {macs: 0.7, params: 0.5}", ("divergence", "weight_bytes")),
    ("budget: {params: 0.5}\nobjectives: [kl, macs]", ("divergence", "macs")),
])
def test_another_budget_from_python_and_on_the_command_line_is_the_same_search(tmp_path, said, objectives):
    file = tmp_path / "study.yaml"
    data = "{calibration: {call: 'zoo:data'}, score: {call: 'zoo:data'}}"
    file.write_text(f"model: {{call: 'zoo:model'}}\ndata: {data}\n{said}\n")
    command = load_study(str(file), ["budget={weight_bytes: 0.4}"])
    for study in (str(file), load_study(str(file))):
        python = settings_of(study, {}, "lrsearch.search", lrsearch.Budget(weight_bytes=0.4))
        assert python == command
        assert python.objectives == objectives
        more = settings_of(study, {"search": {"trials": 7}}, "lrsearch.search")
        assert more == load_study(str(file), ["search={trials: 7}"])


@pytest.mark.parametrize("used", [lambda result: result.write(), lambda result: result.study, lambda result: result._repr_html_()])
def test_a_result_leaves_the_verbosity_of_optuna_alone(searched, used):
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.DEBUG)
    try:
        used(lrsearch.open(searched[0].folder))
        assert optuna.logging.get_verbosity() == optuna.logging.DEBUG
    finally:
        optuna.logging.set_verbosity(before)
