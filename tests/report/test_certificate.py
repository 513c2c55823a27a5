"""A certificate as data and as a table."""

import json
from dataclasses import replace

import pytest

from lrsearch.errors import ArtifactError
from lrsearch.report.certificate import CERTIFICATE, CERTIFICATE_TABLE, Certificate, Check, Origin
from lrsearch.spec.config import StudyConfig
from lrsearch.study.front_conditions import Condition
from lrsearch.workflows.steps.findings import Findings

INPUTS = {"shape": [3, 8, 8], "dtype": "float32"}


@pytest.fixture
def findings() -> Findings:
    found = Findings(figures={"params": 300}, unchecked={"onnx": "no | onnxruntime"}, conditions={"cpu": "Some CPU"})
    found.equal("params", 300, 300)
    found.within("divergence", 0.11, 0.1, 0.02)
    found.at_most("budget latency_ms", 5.3, 5.0)
    found.holds("pick metric", 0.9, Condition("metric", ">=", 0.8))
    return found


def certificate(findings) -> Certificate:
    config = StudyConfig(name="mine", budget={"latency_ms": 5.0}, latency={"backend": "torch"})
    origin = Origin(config, {"a": "b"}, inputs=INPUTS, model="models/0012")
    return Certificate(origin, tuple(findings.checks), findings.figures, findings.unchecked, findings.conditions)


def test_margins_are_shares_of_the_limit_or_of_the_tolerance(findings):
    assert [(c.passed, c.margin and round(c.margin, 6)) for c in findings.checks] == [
        (True, None), (True, 0.5), (False, -0.06), (True, 0.125),
    ]  # fmt: skip
    assert certificate(findings).failures[0].missed() == "budget latency_ms: 5.3, to be at most 5 (missed by 6.0%)"


def test_it_is_read_as_it_was_saved(findings, tmp_path):
    made = certificate(findings)
    made.save(tmp_path)
    assert Certificate.load(tmp_path) == made
    assert json.loads((tmp_path / CERTIFICATE).read_text())["passed"] is False
    table = (tmp_path / CERTIFICATE_TABLE).read_text()
    assert "# mine: FAILED\n\n3 of 4 checks passed, 1 not checked." in table
    assert "| budget latency_ms | 5.3 | at most 5 | -6.0% | **FAIL** |" in table
    assert "- model: models/0012\n" in table
    assert "| onnx | | | | not checked: no \\| onnxruntime |" in table


def test_nothing_checked_is_not_passed(findings):
    assert not certificate(Findings()).passed
    assert Certificate(Origin(StudyConfig()), (Check("a", 1, "equal", 1, True),)).passed


@pytest.mark.parametrize("text", [None, "{", "[]", "{}", '{"origin": {"config": {"seach": 1}}}', '{"origin": {"config": {}}}', "[" * 10**5])
def test_what_is_no_certificate_is_one_clear_error(tmp_path, text):
    if text is not None:
        (tmp_path / CERTIFICATE).write_text(text)
    with pytest.raises(Exception, match=r"certificate\.json") as caught:
        Certificate.load(tmp_path)
    assert isinstance(caught.value, ArtifactError) or "unknown key" in str(caught.value)


def test_a_link_in_the_folder_is_replaced_not_followed(findings, tmp_path):
    mine = tmp_path / "mine"
    mine.write_text("precious")
    folder = tmp_path / "sent"
    folder.mkdir()
    for name in ("certificate.json", "certificate.md"):
        (folder / name).symlink_to(mine)
    certificate(findings).save(folder)
    assert mine.read_text() == "precious"
    assert certificate(findings) == Certificate.load(folder)


def test_what_a_folder_says_stays_within_its_line(findings):
    made = certificate(findings)
    made = replace(made, origin=replace(made.origin, refused={"models/0001\n# passed": "late\n\nrm -rf |"}))
    (line,) = [line for line in made.markdown().splitlines() if "refused before it" in line]
    assert line.endswith("models/0001 # passed: late rm -rf \\|")
