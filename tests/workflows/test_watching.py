"""What a search tells: callbacks, the log, Optuna's storage; and what results show of themselves."""

import re
from pathlib import Path

import optuna
import pytest

import lrsearch
from lrsearch.errors import ArtifactError

SPACE = {"rules": [{
    "families": ["sparse", "low-rank"], "density": {"min": 0.2, "max": 0.6, "steps": 2},
    "rank_ratio": {"min": 0.3, "max": 0.5, "steps": 2},
}]}
SEARCH = {"trials": 2, "control_points": 1, "sampler": "random"}


@pytest.fixture
def told():
    return []


@pytest.fixture
def result(tiny_model, tiny_data, tmp_path, monkeypatch, session_cache, told):
    monkeypatch.setenv("LRSEARCH_CACHE", str(session_cache))
    x, y = tiny_data
    return lrsearch.search(
        tiny_model, calibration=(x[:80], y[:80]), score=(x[80:], y[80:]), space=SPACE, search=SEARCH, name="a <b>name",
        budget=lrsearch.Budget(weight_bytes=0.7), out=tmp_path / "study", callbacks=[lambda study, trial: told.append((study, trial))],
    )


def test_callbacks_and_storage_and_log_say_the_same(result, told, capsys):
    assert [trial.number for _, trial in told] == list(range(len(result.trials)))
    study, trial = told[-1]
    assert (study.study_name, study.metric_names) == ("a <b>name", ["divergence", "weight_bytes"])
    kept = optuna.load_study(study_name="a <b>name", storage=f"sqlite:///{result.folder / 'study.db'}").trials[trial.number]
    assert kept.values == trial.values
    assert kept.user_attrs["metric"] == result._records[-1].score.metric
    assert set(kept.user_attrs["layers"].values()) <= {str(p) for p in result._records[-1].plan.layers.values()}
    log = (result.folder / "search.log").read_text()
    assert log.count(" INFO trial ") == len(told)
    assert f"lrsearch {lrsearch.__version__}" in log
    assert '"weight_bytes":0.7' in log
    assert not re.search(r"dense (has no plan|is left out)", log)  # a budget leaves the dense model out: nobody need be told


@pytest.mark.filterwarnings("ignore")  # MLflow's own
def test_the_manuals_recipe_for_mlflow_logs_what_trials_came_to(result, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3 asks for a database instead
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{result.folder / 'study.db'}")
    manual = (Path(__file__).parents[2] / "docs" / "watching.md").read_text()
    recipe = next(code for code in re.findall(r"```python\n(.*?)```", manual, re.DOTALL) if "mlflow" in code)
    monkeypatch.setattr(lrsearch, "search", lambda _, callbacks: [f(study, trial) for f in callbacks for trial in study.trials])
    exec(recipe, {"lrsearch": lrsearch})
    client = mlflow.MlflowClient()
    (run,) = client.search_runs(["0"])
    for place, name in enumerate(study.metric_names):
        logged = {point.step: point.value for point in client.get_metric_history(run.info.run_id, name)}
        assert logged == {t.number: pytest.approx(t.values[place]) for t in study.trials if t.values}


def test_a_budget_says_what_is_compared_and_where_trials_aim(result):
    assert result.objectives == ("divergence", "weight_bytes")
    searched = result.trials[result.trials.source != "dense"]
    assert searched.weight_bytes_ratio.between(0.2, 0.7).all()
    low, high = next(iter(told_targets(result)))
    assert (high, low) == (pytest.approx(0.7, abs=0.01), pytest.approx(0.35, abs=0.1))


def told_targets(result):
    from lrsearch.search.proposals import Proposals
    from lrsearch.spec.config import SearchConfig
    from lrsearch.study import space_file
    from lrsearch.study.study_folder import StudyFolder

    return Proposals(space_file.load(StudyFolder(result.folder)), result.objectives[1:], SearchConfig(**SEARCH)).targets.values()


def test_objects_show_themselves(result):
    opened = lrsearch.open(result.folder)
    assert repr(opened).startswith(f"Result of a <b>name: front of {len(result.front)} from {len(result.trials)} plans")
    html = opened._repr_html_()
    assert "<svg" in html
    assert "<b>" not in html
    assert "&lt;b&gt;name" in html
    answer = lrsearch.ask(result.folder, lrsearch.Budget(params=0.9))
    assert repr(answer).startswith("best known: trial ")
    assert "not yet tried" in answer._repr_html_()
    plan = answer.best.plan
    assert repr(plan).startswith("Plan(")
    assert all(name in plan._repr_html_() for name in plan.layers)
    assert opened.next_steps(python=True)[0].startswith("lrsearch.open(")  # as its model is no model of timm
    assert result.next_steps(python=True) == [f"result.load({result.choices.first})", f"result.export(index={result.choices.first})"]
    with pytest.raises(ArtifactError, match=r"Give the dense model: lrsearch\.open\(.*, model=model\)\.load\(0\)\.$"):
        opened.load(0)
