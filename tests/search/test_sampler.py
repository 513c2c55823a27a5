import numpy as np
import optuna
import pytest
from optuna.trial import TrialState, create_trial
from toy import decoder

from lrsearch.search.learner import Observation
from lrsearch.search.proposals import Proposals
from lrsearch.search.records import CONTINUES, PLAN, REASON, SEARCH
from lrsearch.search.sampler import LearnedSampler
from lrsearch.spec.config import SearchConfig


@pytest.fixture
def proposals() -> Proposals:
    return Proposals(decoder({}), ["params"], SearchConfig(lowest=0.2))


@pytest.fixture
def study() -> optuna.Study:
    return optuna.create_study(directions=["minimize", "minimize"])


def sampler(proposals, seed=0) -> LearnedSampler:
    def observe(trial):
        if trial.state != TrialState.COMPLETE:
            return None
        weights = np.array([trial.params[n] for n in proposals.parameters.names])
        return Observation(proposals.decoder.terms(proposals.plan(SEARCH, trial.params)), float(np.log(trial.values[0])), weights)

    return LearnedSampler(proposals.candidates(proposals.parameters), ["params"], observe, proposals.plan_of, seed)


def asked(study, proposals, seed=0):
    study.sampler = sampler(proposals, seed)
    return study.ask(proposals.space)


def score(proposals, trial):
    """KL and cost, where the stem's damage counts three times."""
    plan = proposals.plan(SEARCH, trial.params)
    damage = proposals.decoder.damage[proposals.decoder.terms(plan)] * np.array([3.0, 1.0, 1.0, 1.0])
    return [float(damage.sum() + 1e-4), float(proposals.decoder.costs(plan).params)]


def search(study, proposals, n, seed=0):
    """The plans of ``n`` finished trials."""
    plans = []
    for _ in range(n):
        trial = asked(study, proposals, seed)
        plans.append(proposals.plan(SEARCH, trial.params))
        study.tell(trial, score(proposals, trial))
    return plans


def test_no_plan_is_proposed_twice(study, proposals):
    plans = search(study, proposals, 12)
    assert len({p.fingerprint for p in plans}) == 12


def test_proposals_are_within_the_space(study, proposals):
    for _ in range(15):
        trial = asked(study, proposals)
        assert trial.relative_params == trial.params  # Optuna draws anew, in silence, what is outside
        study.tell(trial, score(proposals, trial))


def test_the_seed_and_the_trials_that_stand_decide(proposals):
    runs = []
    for seed, killed in ((1, False), (1, True), (2, False)):
        study = optuna.create_study(directions=["minimize", "minimize"])
        if killed:
            study.add_trial(create_trial(state=TrialState.FAIL))
        search(study, proposals, 4, seed)
        runs.append([t.params for t in study.get_trials() if t.state == TrialState.COMPLETE])
    assert runs[0] == runs[1] != runs[2]


def test_workers_at_the_same_time_are_given_different_plans(study, proposals):
    search(study, proposals, 4)
    together = [asked(study, proposals) for _ in range(3)]
    assert len({proposals.plan(SEARCH, t.params).fingerprint for t in together}) == 3
    ratios = sorted(proposals.decoder.costs(proposals.plan(SEARCH, t.params)).params for t in together)
    assert ratios[0] < 0.95 * ratios[-1]


def test_what_failed_for_a_reason_is_not_tried_again(study, proposals):
    first = asked(study, proposals)
    plan = proposals.plan(SEARCH, first.params)
    first.set_user_attr(REASON, "not finite")
    study.tell(first, state=TrialState.FAIL)
    assert plan not in search(study, proposals, 5)


@pytest.mark.parametrize("state", [TrialState.RUNNING, TrialState.FAIL], ids=str)
def test_controls_and_queued_plans_that_run_or_failed_are_what_they_are(study, proposals, state, monkeypatch):
    decoder, aims = proposals.decoder, proposals.parameters.of(None) | {"target/params": 0.5}
    stored = decoder.plan(proposals.candidates(proposals.parameters).draw([], np.random.default_rng(5))[0].pick)
    attributes = {"uniform": {"source": "uniform"}, "low-rank-only": {"source": "low-rank-only"}, "queued": {PLAN: stored.to_dict()}}
    for own in attributes.values():
        study.add_trial(create_trial(state=state, params=aims, distributions=proposals.space, user_attrs=own | {REASON: "not finite"}))
    study.add_trial(create_trial(state=state, params=aims, distributions=proposals.space, user_attrs={CONTINUES: 0, REASON: "rung"}))
    seen, picks = [], LearnedSampler._picks
    monkeypatch.setattr(LearnedSampler, "_picks", lambda self, trials: seen.append(picks(self, trials)) or seen[-1])
    asked(study, proposals)
    found = [decoder.plan(pick) for pick in seen[state == TrialState.FAIL]]
    assert found[:3] == [proposals.plan("uniform", aims), proposals.plan("low-rank-only", aims), stored]
    assert proposals.plan(SEARCH, aims) not in found[:3]
    assert len(found) == (4 if state == TrialState.FAIL else 3)  # a further rung that runs is of a plan that was seen


def test_a_span_of_one_target_is_that_target(study):
    proposals = Proposals(decoder({"params": decoder({}).smallest("params")}), ["params"], SearchConfig())
    low, high = proposals.targets["params"]
    assert low == high == asked(study, proposals).params["target/params"]
