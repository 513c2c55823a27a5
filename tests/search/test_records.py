import json
from dataclasses import replace

import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from lrsearch.errors import StudyError
from lrsearch.search.records import Record, front, is_settled, merged, reached, values
from lrsearch.spec.cost import Cost
from lrsearch.spec.plan import LayerPlan, Plan
from lrsearch.spec.score import Score
from lrsearch.study.recovered import recovered_records
from lrsearch.study.study_folder import StudyFolder

PLAN = Plan({"a": LayerPlan(density=0.2)})


def record(number, *kls, complete=False, twin=None, source="search", params=10):
    scores = tuple(Score(0.5 + 0.1 * i, kl, 0.01, i, False, 0.02) for i, kl in enumerate(kls))
    return Record(number, source, PLAN, Cost(params, 5, 4, 40), scores, complete, f"models/{number if twin is None else twin:04d}", twin)


def trial(record, number, state=TrialState.PRUNED, **attrs):
    made = create_trial(
        state=state, values=[1.0, 2.0] if state == TrialState.COMPLETE else None, params={"x": 0.5},
        distributions={"x": FloatDistribution(0, 1)}, user_attrs={**json.loads(json.dumps(record.attributes())), **attrs},
    )
    made.number = number
    return made


def test_a_record_comes_back_from_its_trial():
    found = record(3, 2.0)
    assert Record.of(trial(found, 3)) == found
    whole = record(3, 2.0, 1.0, complete=True, source="uniform")
    assert Record.of(trial(whole, 8, TrialState.COMPLETE, continues=3, rung=1, source="uniform")) == whole
    assert Record.of(trial(record(5, 2.0, twin=3), 5)) == record(5, 2.0, twin=3)
    harmed = replace(whole, untrained=True)
    assert Record.of(trial(harmed, 8, continues=3, rung=1, source="uniform")) == replace(harmed, complete=False)
    assert values(harmed, ("divergence", "params")) == (2.0, 10)


def test_a_trial_that_did_not_finish_has_no_record():
    assert Record.of(trial(record(3, 2.0), 3, TrialState.FAIL)) is None
    assert Record.of(create_trial(state=TrialState.PRUNED)) is None


def test_only_what_was_killed_or_given_up_does_not_stand():
    made = record(3, 2.0)
    others = [state for state in TrialState if state != TrialState.FAIL]
    assert [is_settled(trial(made, 3, state)) for state in others] == [True] * 4
    assert not is_settled(trial(made, 3, TrialState.FAIL))
    assert is_settled(trial(made, 3, TrialState.FAIL, reason="outputs must be finite"))


def test_each_plan_is_there_once_as_far_as_it_came():
    records = [record(0, 4.0), record(1, 3.0), record(0, 4.0, 2.0), record(0, 4.0, 2.0, 1.0, complete=True), record(1, 3.0, 2.5)]
    assert merged(records) == [records[3], records[4]]
    assert merged(reversed(records)) == [records[3], records[4]]


def test_a_twin_has_what_the_other_came_to():
    twin = merged([record(0, 4.0), record(2, 4.0, twin=0, source="knapsack"), record(0, 4.0, 2.0, complete=True)])[1]
    assert (twin.number, twin.source, twin.twin, twin.model) == (2, "knapsack", 0, "models/0000")
    assert (twin.rung, twin.score.kl, twin.complete) == (1, 2.0, True)
    harmed = replace(record(0, 1.0, 2.0), untrained=True)
    assert [r.score.kl for r in merged([harmed, record(2, 1.0, twin=0)])] == [1.0, 1.0]


def test_how_many_reached_each_rung():
    records = [record(0, 3.0, 2.0, 1.0), record(1, 3.0), record(2, 3.0, 2.0), record(3, 3.0, 2.0, twin=2)]
    assert reached(records) == [3, 2, 1]
    assert reached([]) == []


@pytest.mark.parametrize(("rung", "kl", "metric"), [(0, 3.0, -0.5), (1, 2.0, -0.6), (None, 2.0, -0.6)])
def test_values_are_those_of_a_rung(rung, kl, metric):
    assert values(record(0, 3.0, 2.0), ("divergence", "params"), rung) == (kl, 10.0)
    assert values(record(0, 3.0, 2.0), ("metric", "macs"), rung) == pytest.approx((metric, 5.0))


def test_the_front_is_of_complete_records():
    records = [record(0, 3.0, complete=True), record(1, 1.0), record(2, 2.0, complete=True, params=20), record(3, 4.0, complete=True)]
    assert [r.number for r in front(records, ("divergence", "params"))] == [2, 0]
    assert front(records[1:2], ("divergence", "params")) == []


def test_a_recovered_model_counts_with_its_own_score(tmp_path, monkeypatch):
    (tmp_path / "models" / "recovered-0003").mkdir(parents=True)
    score = Score(0.9, 0.5, 0.01, 90, False)
    about = {"recovered": {"trial": 3}, "score": score.to_dict()}
    monkeypatch.setattr("lrsearch.compress.artifact.read_plan", lambda folder: (PLAN, about))
    for untrained in (False, True):
        records = [replace(record(3, 2.0, 3.0, complete=True), untrained=untrained), record(4, 1.0)]
        (found,) = recovered_records(StudyFolder(tmp_path), records)
        assert (found.number, found.score, found.model) == (3, score, "models/recovered-0003")


@pytest.mark.parametrize("model", ["/tmp/elsewhere", "../0003", "models/0003/..", "models/../../x", 3, None])
def test_a_model_elsewhere_than_in_the_study_is_refused(model):
    one = record(3, 0.5, complete=True)
    with pytest.raises(StudyError, match="models are in the study's own folder"):
        Record.of(trial(one, 3, TrialState.COMPLETE, model=model))
