import math
from dataclasses import replace

import numpy as np
import optuna
import pytest
from jobs import searching, states, stored

import lrsearch
from lrsearch.errors import BudgetError, ConfigError, StudyError
from lrsearch.search.records import Record
from lrsearch.study import space_file, what_if
from lrsearch.study.identity import read_config
from lrsearch.study.recovered import read_finished
from lrsearch.study.study_folder import StudyFolder
from lrsearch.study.workers import working


@pytest.fixture
def folder(result):
    return result.folder


def test_a_snapshot_costs_plans_as_the_study_did(result):
    decoder = space_file.load(StudyFolder(result.folder))
    for record in result._records:
        assert decoder.costs(record.plan) == record.cost
    assert decoder.limits == {"params": int(0.6 * result.dense.params), "weight_bytes": int(0.65 * result.dense.weight_bytes)}
    assert decoder.damage.max() > 0


@pytest.mark.parametrize("text", ["", "{}", '{"layers": 3}', "[]"])
def test_a_damaged_snapshot_is_told(folder, text):
    (folder / "space.json").write_text(text)
    with pytest.raises(StudyError, match=r"space\.json"):
        lrsearch.ask(folder, lrsearch.Budget(params=0.4))


def test_the_best_plan_known_is_the_best_of_those_that_fit(result):
    answer = lrsearch.ask(result.folder, lrsearch.Budget(params=0.45))
    fitting = result.trials[(result.trials.params_ratio <= 0.45) & (result.trials.weight_bytes_ratio <= 0.65)]
    assert answer.best.score.divergence == answer.known.scores[0].divergence == fitting.divergence.min()


def test_the_untried_plan_is_new_and_within_all_budgets(result):
    answer = lrsearch.ask(result.folder, lrsearch.Budget(params=0.45, macs=0.9))
    plan, cost = answer.untried.plan, answer.untried.cost
    assert plan not in [r.plan for r in result._records]
    assert cost == space_file.load(StudyFolder(result.folder)).costs(plan)
    assert cost.params <= 0.45 * result.dense.params
    assert cost.macs <= 0.9 * result.dense.macs
    assert cost.weight_bytes <= 0.65 * result.dense.weight_bytes
    low, high = answer.untried.interval
    assert low < answer.untried.divergence < high
    assert answer.untried.divergence == pytest.approx(math.sqrt(low * high))


def test_what_is_queued_is_what_the_study_tries_next(job, result):
    answer = lrsearch.ask(result.folder, lrsearch.Budget(params=0.4), queue=True)
    more = lrsearch.search(**searching(job, trials=4))
    last = more._records[-1]
    assert last.plan == answer.untried.plan
    assert len(more.trials) == len(result.trials) + 1
    assert last.cost == answer.untried.cost


def test_what_is_queued_is_what_is_shown_within_budgets_that_the_study_has_not(job, result):
    """The study's own parameters know nothing of such a budget, and lead elsewhere."""
    answer = lrsearch.ask(result.folder, lrsearch.Budget(params=0.4, macs=0.55), queue=True)
    last = lrsearch.search(**searching(job, trials=4))._records[-1]
    assert (last.plan, last.cost) == (answer.untried.plan, answer.untried.cost)
    assert last.cost.macs <= 0.55 * result.dense.macs


@pytest.mark.filterwarnings("error")
def test_a_plan_below_the_lowest_target_may_be_queued(job, result):
    answer = lrsearch.ask(result.folder, lrsearch.Budget(params=0.18), queue=True)
    last = lrsearch.search(**searching(job, trials=4))._records[-1]
    assert last.plan == answer.untried.plan
    assert last.cost.params <= 0.18 * result.dense.params


def test_a_queued_plan_outlives_the_worker_that_began_it(job, result):
    answer = lrsearch.ask(result.folder, lrsearch.Budget(params=0.4, macs=0.55), queue=True)
    killed = stored(result.folder).ask()  # before it had its parameters
    more = lrsearch.search(**searching(job, trials=4))
    assert more._records[-1].plan == answer.untried.plan
    assert stored(result.folder).get_trials()[killed.number].state.name == "FAIL"


def test_a_plan_may_be_queued_while_others_search(result):
    before = states(result.folder)
    with working(result.folder):
        lrsearch.ask(result.folder, lrsearch.Budget(params=0.4), queue=True)
    assert states(result.folder) == [*before, "WAITING"]


def test_asking_changes_nothing(result):
    before = len(stored(result.folder).get_trials())
    first, second = (lrsearch.ask(result.folder, lrsearch.Budget(params=0.4)) for _ in range(2))
    assert first == second
    assert len(stored(result.folder).get_trials()) == before


def test_a_budget_that_no_plan_meets_names_the_smallest(folder):
    with pytest.raises(BudgetError, match=r"budget\.params: .*smallest possible"):
        lrsearch.ask(folder, lrsearch.Budget(params=2))


def test_where_nothing_known_fits_there_is_still_a_prediction(result):
    least = space_file.load(StudyFolder(result.folder)).smallest("macs")
    answer = lrsearch.ask(result.folder, lrsearch.Budget(macs=int(1.02 * least)))
    assert answer.best is None
    assert answer.untried.divergence > 0


def test_a_study_of_ranks_and_densities_has_no_predictions(job, tmp_path):
    lrsearch.search(**searching(job, parameters="direct", sampler="random", trials=1))
    assert read_config(StudyFolder(job["out"])).search.parameters == "direct"
    with pytest.raises(ConfigError, match=r"search\.parameters"):
        lrsearch.ask(job["out"], lrsearch.Budget(params=0.4))


def test_optuna_sees_the_ranks_and_densities_that_plans_came_to(result):
    study = result.study
    plans = {r.number: r for r in result._records}
    assert [t.values for t in study.get_trials()] == [[r.score.divergence, r.cost.params] for r in plans.values() if r.twin is None]
    for trial in study.get_trials():
        plan = plans[trial.user_attrs["trial"]].plan
        for name in ("stem", "head"):
            assert trial.params[f"density/{name}"] == plan[name].density
            assert (trial.params[f"rank/{name}"] > 0) == bool(plan[name].rank)
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    importances = optuna.importance.get_param_importances(study, evaluator=evaluator, target=lambda t: t.values[0])
    assert sum(importances.values()) == pytest.approx(1)


def test_beside_a_plan_that_loses_nothing_the_untried_is_still_the_best_of_many(result, monkeypatch):
    expected, gains = what_if.expected_gain, []

    def watched(*args):
        gains.append(expected(*args))
        return gains[-1]

    monkeypatch.setattr(what_if, "expected_gain", watched)
    merged = what_if.merged
    monkeypatch.setattr(what_if, "merged", lambda rs: [replace(r, scores=(replace(r.scores[0], divergence=0.0),)) for r in merged(rs)])
    assert lrsearch.ask(result.folder, lrsearch.Budget(params=1.0)).best.score.divergence == 0
    assert len(gains) == 1
    assert np.isfinite(gains[0]).all()


def test_a_study_without_a_finished_plan_has_no_front(folder, monkeypatch):
    monkeypatch.setattr(Record, "of", classmethod(lambda *_: None))
    with pytest.raises(StudyError, match="the study must have a front; got 0 plans"):
        read_finished(StudyFolder(folder))
