"""The fidelity command: rungs against a long finetune on the plans of a finished study."""

import json
import re
from pathlib import Path

import pytest

from lrsearch.cli.main import main
from lrsearch.study.fidelity import Comparison, chosen_plans
from lrsearch.study.recovered import read_finished
from lrsearch.study.study_folder import StudyFolder
from lrsearch.train import teacher

STUDY = Path("runs/tiny")


@pytest.fixture
def study(study):
    study["data"]["train"] = {"call": "zoo:data", "args": {"seed": 3, "n": 60}}
    study["proxy"] = {"finetune": {"steps": 4, "rungs": 2, "batch": 10}}
    study["search"] = {"trials": 8, "control_points": 1, "lowest": 0.3}
    return study


@pytest.mark.slow
def test_a_table_and_a_figure(path, capsys):
    assert main(["fidelity", path, "--plans", "6", "--long", "9"]) == 0
    out = capsys.readouterr().out
    assert "Kendall's tau with 9 steps, 6 plans" in out
    rows = re.findall(r"^ *(\d+) +(\d+) +(-?\d\.\d+|nan) +(-?\d\.\d+|nan) +\S+ *$", out, re.MULTILINE)
    assert [row[:2] for row in rows] == [("0", "0"), ("1", "2"), ("2", "4")]
    found = json.loads((STUDY / "fidelity.json").read_text())["9"]
    assert len(found) == 6
    for row in found.values():
        assert [s["fidelity"] for s in (*row["rungs"], row["long"])] == [0, 2, 4, 9]
    assert "plotly" in (STUDY / "fidelity.html").read_text()


def test_scores_of_rungs_are_the_studys(path):
    main(["fidelity", path, "--plans", "6", "--long", "9"])
    records = {str(r.number): r for r in read_finished(StudyFolder(STUDY)).records}
    for number, row in json.loads((STUDY / "fidelity.json").read_text())["9"].items():
        known = [s.to_dict() for s in records[number].scores]
        made = {s["fidelity"]: s["divergence"] for s in row["rungs"]}
        assert all(made[s["fidelity"]] == pytest.approx(s["divergence"], rel=1e-6) for s in known)
    main(["report", str(STUDY)])
    assert '"fidelity": [{"data": ' in (STUDY / "report.html").read_text()


def test_killed_it_goes_on_with_the_plan_it_was_at(path, monkeypatch):
    run, calls = Comparison._trained, []

    def killed(self, record, *rest):
        calls.append(record.number)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return run(self, record, *rest)

    monkeypatch.setattr(Comparison, "_trained", killed)
    assert main(["fidelity", path, "--plans", "6", "--long", "9"]) == 130
    kept = json.loads((STUDY / "fidelity.json").read_text())["9"]
    assert 0 < len(kept) < 6
    assert main(["fidelity", path, "--plans", "6", "--long", "9"]) == 0
    found = json.loads((STUDY / "fidelity.json").read_text())["9"]
    assert {k: found[k] for k in kept} == kept
    assert not set(calls[5:]) & {int(k) for k in kept}
    before = len(calls)
    assert main(["fidelity", path, "--plans", "6", "--long", "9"]) == 0
    assert len(calls) == before


def test_plans_are_spread_over_the_costs_and_the_searchs_own_come_first(path):
    records = read_finished(StudyFolder(STUDY)).records
    chosen = chosen_plans(records, "params", 4)
    costs = [r.cost.params for r in chosen]
    own = [r.cost.params for r in records if r.source == "search"]
    assert costs == sorted(costs)
    assert (costs[0], costs[-1]) == (min(own), max(own))
    assert {r.source for r in chosen} == {"search"}
    assert len({r.plan.fingerprint for r in chosen_plans(records, "params", 99)}) == len(chosen_plans(records, "params", 99))
    assert chosen_plans(records[::-1], "params", 4) == chosen


def test_the_study_can_be_searched_further(path):
    assert main(["fidelity", path, "--plans", "4", "--long", "5"]) == 0
    assert main(["search", path, "--trials", "9"]) == 0


def test_a_study_without_finetunes_has_them_only_at_length(write):
    """Loss and learning rate are found for these."""
    path = write(proxy={"finetune": {"batch": 10}})
    assert main(["search", path]) == 0
    assert main(["fidelity", path, "--plans", "4", "--long", "5"]) == 0
    found = json.loads((STUDY / "fidelity.json").read_text())["5"]
    assert [[s["fidelity"] for s in (*row["rungs"], row["long"])] for row in found.values()] == 4 * [[0, 5]]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["--plans", "3"], r"--plans: must be at least 4; got 3"),
        (["--long", "4"], r"--long: must be above 4, the steps of the last rung; got 4"),
        (["--study-folder", "runs"], r"runs: the folder must hold a study"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(path, capsys, command, message):
    assert main(["fidelity", path, *command]) == 2
    err = capsys.readouterr().err
    assert re.match(rf"lrsearch: .*{message}", err)
    assert err.count("\n") == 1


def test_a_loss_that_is_not_finite_is_one_line(path, capsys, monkeypatch):
    far = teacher.feature_loss
    monkeypatch.setattr(teacher, "feature_loss", lambda found, wanted: far(found, wanted) * float("nan"))
    assert main(["fidelity", path, "--plans", "4", "--long", "5"]) == 2
    assert re.match(r"lrsearch: finetune step 0: the finetune loss must be finite", capsys.readouterr().err)
