"""The ask command: what a study knows about other budgets."""

import re

import optuna
import pytest
from optuna.trial import TrialState

from lrsearch.cli.main import main

KL = r"KL \d+\.\d{4}"


def waiting() -> int:
    study = optuna.load_study(study_name=None, storage="sqlite:///runs/tiny/study.db")
    return len(study.get_trials(states=[TrialState.WAITING]))


def test_it_shows_the_best_known_and_a_prediction(path, capsys):
    assert main(["ask", path, "--budget", "params=0.6", "--budget", "macs=0.95"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    known, untried = out.splitlines()
    costs = r"params \d+ \(\d+\.\d%\), macs [\d,]+ \(\d+\.\d%\)"
    assert re.fullmatch(rf"best known:     trial \d \([\w-]+\), {KL}, metric [\d.]+%, {costs}", known)
    assert re.fullmatch(rf"not yet tried:  {KL} \(\d\.\d{{4}} to \d+\.\d{{4}} with 95 %\) before finetuning, {costs}", untried)


def test_a_queued_plan_is_tried_by_the_next_search(path, capsys):
    assert main(["ask", path, "--budget", "params=0.5", "--queue"]) == 0
    assert capsys.readouterr().out.endswith("queued: lrsearch search tries it next, also one that runs\n")
    assert waiting() == 1
    assert main(["search", path, "--trials", "3"]) == 0
    assert waiting() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "parms=0.5"], r"--budget: must be metric=limit.*parms=0\.5"),
        (["--budget", "params"], r"--budget: must be metric=limit"),
        (["--budget", "params=few"], r"--budget params: must be a number; got 'few'"),
        (["--budget", "params=-1"], r"budget\.params: must be a ratio"),
        (["--budget", "params=2"], r"budget\.params: some plan in the search space must meet the budget"),
        (["--budget", "params=0.5", "--study-folder", "nowhere"], r"nowhere: the folder must hold a study"),
    ],
)
def test_mistakes_are_told_in_one_line(path, capsys, arguments, message):
    assert main(["ask", path, *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.search(message, err), err
    assert err.count("\n") == 1
