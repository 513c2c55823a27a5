"""A model of the front is exported from the result in hand, as the command does it from the study's folder."""

import json

import pytest

import lrsearch
from lrsearch.errors import ConfigError
from lrsearch.latency.backends import OnnxRuntime
from lrsearch.latency.runner import Timing
from lrsearch.report.certificate import Certificate
from lrsearch.workflows.steps import export_folder as export
from lrsearch.workflows.steps import retime


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Without ONNX and without a clock."""
    def refuse(*_):
        raise ConfigError("no exporter", value="-", place="-", remedy="-")

    monkeypatch.setattr(export, "onnx_form", refuse)
    monkeypatch.setattr(retime, "interleaved", lambda models, threads, rounds: [Timing(1.0, 1.0, 1.0, 1.0, 1)] * len(models))
    monkeypatch.setattr(OnnxRuntime, "build", lambda *_: None)


def test_the_best_that_satisfies_the_conditions_is_loaded_anew_and_verified(result, job, tmp_path):
    certificate = result.export(tmp_path / "ship", pick="params_ratio<=0.5")
    best = result.front[result.front.params_ratio <= 0.5].sort_values("divergence").iloc[0]
    assert certificate.passed
    budgets = {"budget params", "budget weight_bytes", "pick params_ratio"}
    assert {*budgets, "metric", "divergence"} <= {check.name for check in certificate.checks}
    assert certificate.figures["params"] == best.params
    assert Certificate.load(tmp_path / "ship") == certificate
    again = lrsearch.verify(tmp_path / "ship", model=job["model"], score=job["score"])
    assert {c.name: c.passed for c in again.checks} == {c.name: c.passed for c in certificate.checks}


def test_a_row_may_be_named_and_the_study_folder_is_the_place(result):
    last = len(result.front) - 1
    result.export(index=last)
    plan = json.loads((result.folder / "export" / "plan.json").read_text())["plan"]
    assert plan == json.loads((result.folder / result.front.model[last] / "plan.json").read_text())["plan"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"index": 99}, r"Result\.export: index: must be a row of the front, 0 to \d+; got 99"),
        ({"pick": "speed<1"}, r"Result\.export: pick: must be column"),
        ({"pick": "params_ratio<0.001"}, r"Result\.export: pick: a member of the front must satisfy every condition"),
        ({"pick": "params_ratio<1", "index": 0}, r"Result\.export: give pick or index, not both"),
    ],
)
def test_what_names_no_row_is_refused(result, arguments, message):
    with pytest.raises(ConfigError, match=message):
        result.export(**arguments)
