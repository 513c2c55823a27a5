import json

import pytest
import torch
from jobs import CONTROLS, FINETUNED, Notes, corrected_untrained, interrupt, searching, states, stored
from optuna.trial import TrialState
from outputs import divergence, last_counts

import lrsearch
from lrsearch.errors import ScoreError
from lrsearch.search.halving import Halving
from lrsearch.search.records import Record
from lrsearch.spec.cost import Cost
from lrsearch.spec.plan import Plan
from lrsearch.spec.progress import Progress
from lrsearch.spec.score import Score
from lrsearch.study.evaluator import Evaluator
from lrsearch.study.finetune_checkpoints import FinetuneCheckpoints
from lrsearch.study.losses import Losses
from lrsearch.study.study_folder import StudyFolder
from lrsearch.train.best import Best
from lrsearch.train.finetune import Training
from lrsearch.train.range_test import RangeTest


@pytest.fixture
def finetuned(job):
    """A job with two training rungs."""
    return {**job, **FINETUNED}


@pytest.fixture
def trainings(monkeypatch):
    """The places of the trainings made; ``trainings.fail`` may hold one to answer each with an error."""

    class Trainings(list):
        fail = staticmethod(lambda count: None)

    made, trained = Trainings(), Evaluator.trained

    def counted(self, training, until, place, corrected):
        made.append(place.partition(", ")[0] + f" to {until}")
        made.fail(len(made))
        return trained(self, training, until, place, corrected)

    monkeypatch.setattr(Evaluator, "trained", counted)
    return made


def files(folder):
    return {p.name for p in folder.glob("*")}


def test_fewer_plans_reach_each_rung_and_the_front_is_of_the_last(finetuned_result):
    trials = finetuned_result.trials
    assert (trials.source == "search").sum() == 8
    assert trials.trial.is_unique
    assert ((trials.finetune_steps == trials.rung.map({0: 0, 1: 2, 2: 4})) | (trials.divergence == trials.divergence_before_finetune)).all()
    own = trials[trials.model == trials.trial.map("models/{:04d}".format)]
    reached = [(own.rung >= rung).sum() for rung in range(3)]
    assert reached[0] > reached[1] > reached[2] >= 1
    assert trials.complete.equals(trials.rung == 2)
    assert trials[trials.on_front].complete.all()


def with_rate(finetuned, rate):
    return {**finetuned, "proxy": {"finetune": {**FINETUNED["proxy"]["finetune"], "learning_rate": rate}}}


@pytest.fixture
def harmful(monkeypatch):
    """Finetunes hand over their last state, however bad, and not their best."""
    monkeypatch.setattr(Best, "judge", last_counts)


@pytest.mark.usefixtures("harmful")
def test_a_plan_that_its_finetune_made_worse_counts_and_is_saved_as_it_was(finetuned):
    told, job = Notes(), with_rate(finetuned, 3.0)
    result = lrsearch.search(**job, progress=told)
    further = [t for t in stored(job["out"]).get_trials() if "continues" in t.user_attrs]
    scores = {t.user_attrs["continues"]: t.user_attrs["scores"] for t in further}  # as far as each came
    worse = {n for n, s in scores.items() if s[-1]["divergence"] > 2 * s[0]["divergence"]}
    own = result.trials.set_index("trial").loc[sorted(worse)]
    assert len(own) > 3
    assert (own.finetune_steps == 0).all()
    assert own.divergence.tolist() == [scores[n][0]["divergence"] for n in own.index] == own.divergence_before_finetune.tolist()
    assert all(t.values[0] == own.divergence[n] for t in further if t.values and (n := t.user_attrs["continues"]) in worse)
    for n in worse:
        change = f"finetune steps took its KL from {scores[n][0]['divergence']:.3g} to {scores[n][-1]['divergence']:.3g}, so it counts"
        assert any(note.startswith(f"trial {n}: ") and change in note for note in told.notes)
    x = job["score"][0]
    with torch.no_grad():
        for i, row in result.front.iterrows():
            assert divergence(result.load(i)(x), job["model"](x)).mean().item() == pytest.approx(row.divergence, rel=1e-4)


def test_no_finetune_ends_worse_than_it_began_whatever_the_rate(finetuned):
    trials = lrsearch.search(**with_rate(finetuned, 3.0)).trials
    assert (trials.rung > 0).sum() > 3
    assert (trials.divergence <= trials.divergence_before_finetune * 1.001).all()


@pytest.mark.usefixtures("harmful")
def test_what_is_worse_by_the_metric_is_told_by_the_metric(finetuned):
    told = Notes()
    trials = lrsearch.search(**{**with_rate(finetuned, 3.0), "objectives": ("metric", "params")}, progress=told).trials
    harmed = trials[(trials.rung > 0) & (trials.finetune_steps == 0)]
    assert len(harmed)
    assert (harmed.metric == harmed.metric_before_finetune).all()
    for row in harmed[harmed.model == harmed.trial.map("models/{:04d}".format)].itertuples():
        assert any(n.startswith(f"trial {row.trial}: ") and f"took its metric from {row.metric:.3g} to 0." in n for n in told.notes)


def test_a_change_within_the_noise_counts(finetuned):
    told = Notes()
    trials = lrsearch.search(**with_rate(finetuned, 1e-9), progress=told).trials
    assert (trials.finetune_steps > 0).equals(trials.rung > 0)
    assert not [note for note in told.notes if "finetune steps" in note]


def test_in_the_storage_every_rung_is_a_trial_that_continues_its_plans_first(finetuned, finetuned_result):
    trials = finetuned_result.trials
    made = stored(finetuned["out"]).get_trials()
    further = [t for t in made if "continues" in t.user_attrs]
    assert len(further) == trials[trials.model == trials.trial.map("models/{:04d}".format)].rung.sum()
    for t in further:
        first, rung = made[t.user_attrs["continues"]], t.user_attrs["rung"]
        assert (t.params, t.user_attrs["plan"]) == (first.params, first.user_attrs["plan"])
        assert t.user_attrs["scores"][:1] == first.user_attrs["scores"]
        assert len(t.user_attrs["scores"]) == rung + 1
        assert (t.state == TrialState.COMPLETE) == (rung == 2)
    assert states(finetuned["out"]).count("FAIL") == 0


def test_a_finetune_is_told_whether_its_plans_batchnorm_was_corrected_untrained(finetuned, told):
    lrsearch.search(**searching({**finetuned, "budget": None}, trials=8))
    assert told == corrected_untrained(finetuned["out"], told)
    assert set.union(*told.values()) == {False, True}


def test_the_best_control_reaches_the_last_rung(finetuned_result):
    trials = finetuned_result.trials
    controls = trials[trials.source.isin(CONTROLS)]
    assert controls.complete.any()
    assert not controls.complete.all()


def test_the_dense_model_is_on_the_front_where_no_budget_forbids_it(finetuned):
    front = lrsearch.search(**searching({**finetuned, "budget": None}, trials=1)).front
    assert (front.source[0], front.rung[0]) == ("dense", 2)


def test_a_paused_finetune_goes_on_to_what_it_would_have_been(finetuned, finetuned_result, tmp_path, monkeypatch):
    paused = finetuned_result
    assert not files(finetuned["out"] / "paused")
    monkeypatch.setattr(FinetuneCheckpoints, "load", lambda self, number: None)
    over = lrsearch.search(**{**finetuned, "out": tmp_path / "over"})
    assert paused.trials.equals(over.trials)


def test_a_run_that_is_out_of_time_keeps_what_is_paused(finetuned, trainings):
    trainings.fail = lambda made: interrupt() if trainings[-1].endswith(" to 4") else None
    with pytest.raises(KeyboardInterrupt):
        lrsearch.search(**finetuned)
    paused = files(finetuned["out"] / "paused")
    lrsearch.search(**searching(finetuned, timeout=1e-9))
    assert files(finetuned["out"] / "paused") == paused != set()


def test_a_killed_rung_is_done_again_from_the_one_before_and_nothing_else_is(finetuned, trainings, tmp_path):
    whole = lrsearch.search(**{**finetuned, "out": tmp_path / "whole"})
    count, steps = len(trainings), list(trainings)
    second = next(i for i, t in reversed(list(enumerate(trainings))) if t.endswith(" to 4"))
    trainings.clear()
    trainings.fail = lambda made: interrupt() if made == second + 1 else None
    with pytest.raises(KeyboardInterrupt):
        lrsearch.search(**finetuned)
    number = steps[second].split()[1]
    assert f"{int(number):04d}.pt" in files(finetuned["out"] / "paused")
    resumed = lrsearch.search(**finetuned)
    assert trainings == [*steps[: second + 1], *steps[second:]]
    assert len(trainings) == count + 1
    numbers = ["trial", "model"]  # the killed trial has one too, so that plans made after it have other ones
    assert resumed.trials.drop(columns=numbers).equals(whole.trials.drop(columns=numbers))
    assert states(finetuned["out"]).count("FAIL") == 1


def test_a_rung_that_fails_is_not_tried_again(finetuned, trainings):
    def fail(made):
        if made == 1:
            raise ScoreError("the loss must be finite", value="nan", place="here", remedy="Mend it.")

    trainings.fail = fail
    trials = lrsearch.search(**finetuned).trials
    number = int(trainings[0].split()[1])
    assert [t for t in trainings if t.split()[1] == str(number)] == trainings[:1]
    assert trials.rung[trials.trial == number].item() == 0
    failed = [t.user_attrs["reason"] for t in stored(finetuned["out"]).get_trials() if t.state == TrialState.FAIL]
    assert failed == ["here: the loss must be finite; got nan. Mend it."]


def test_more_trials_later_let_more_plans_go_on(finetuned, trainings):
    first = lrsearch.search(**searching(finetuned, sampler="learned")).trials
    made = list(trainings)
    second = lrsearch.search(**searching(finetuned, sampler="learned", trials=16)).trials
    assert (second.source == "search").sum() == 16
    assert len(trainings) > len(made)
    assert len(set(trainings)) == len(trainings)
    before = second[second.trial.isin(first.trial)]
    assert (before.rung.to_numpy() >= first.rung.to_numpy()).all()


def test_a_study_without_time_to_finetune_goes_on_later(finetuned, trainings):
    trainings.fail = lambda made: interrupt()
    with pytest.raises(KeyboardInterrupt):
        lrsearch.search(**finetuned)
    assert (finetuned["out"] / "front.csv").exists()
    trainings.fail = lambda made: None
    assert len(lrsearch.search(**finetuned).front)


def test_what_each_example_lost_is_kept_for_every_rung(finetuned, finetuned_result):
    trials = finetuned_result.trials
    own = trials[trials.model == trials.trial.map("models/{:04d}".format)]
    wanted = {f"{r.trial:04d}-{rung}.f16" for r in own.itertuples() for rung in range(r.rung + 1)}
    assert files(finetuned["out"] / "losses") == wanted
    assert {p.stat().st_size for p in (finetuned["out"] / "losses").iterdir()} == {2 * 60}


def test_progress_and_page_say_how_many_reached_each_rung(finetuned):
    class Watch(Progress):
        def __init__(self):
            self.shown = []

        def show(self, best=""):
            self.shown.append(best)

        advance = show  # of a plan's first rung

    watch = Watch()
    result = lrsearch.search(**finetuned, progress=watch)
    counts = result.rungs
    plans, *finetuned_plans = counts.plans
    first, last = finetuned_plans
    reached = f"{plans} plans, {first} finetuned, {last} of them to the last rung, front of {len(result.front)}; "
    assert watch.shown[-1].startswith(reached)
    assert list(counts.finetune_steps) == [0, 2, 4]
    assert "How far the plans went" in (finetuned["out"] / "report.html").read_text()


def record(number, params, *kls, source="search", twin=None):
    scores = tuple(Score(0.5, kl, 0.01, rung, False) for rung, kl in enumerate(kls))
    return Record(number, source, Plan(), Cost(params), scores, False, "", twin)


@pytest.fixture
def losses(tmp_path):
    return Losses(StudyFolder(tmp_path))


@pytest.fixture
def halving(losses):
    return Halving.of(("divergence", "params"), {"params": (25.0, 100.0)}, 3, (5, 10), 2, losses.noise)


def test_plans_compete_near_each_budget_of_the_controls(halving):
    assert halving.budgets["params"] == pytest.approx([100, 50, 25])
    records = [record(0, 90, 1.0), record(1, 100, 2.0), record(2, 30, 5.0), record(3, 25, 9.0), record(4, 50, 3.0)]
    going, sent = [], {}
    while found := halving.due([r for r in records if r.number not in going], sent, final=False):
        going.append(found[0].number)
    assert going == [0, 2]


def test_twins_stay_where_they_are(halving):
    records = [record(0, 50, 1.0), record(1, 50, 1.0, twin=0), record(2, 50, 1.0, twin=0), record(3, 50, 9.0)]
    assert halving.due(records, {}, final=True) == (records[0], 1)
    assert halving.due(records, {0: 1}, final=True) is None


def test_what_noise_alone_tells_apart_leaves_the_place_to_the_cheaper(halving, losses):
    records = [record(0, 52, 1.00), record(1, 50, 1.05), record(2, 53, 1.10)]
    assert halving.due(records, {}, final=True) == (records[0], 1)
    for number, shift in ((0, 0.0), (1, 0.1), (2, 0.04)):
        losses.save(number, 0, [1.0 + 2 * shift, 1.0, 2.0 - 2 * shift])
    assert losses.noise([0, 1], 0)[0, 1] > 0.05
    assert halving.due(records, {}, final=True) == (records[1], 1)
    assert halving.due(records, {1: 1}, final=True) == (records[0], 1)  # 2 is worse in both, however noisy


def test_without_rungs_nothing_is_due(losses):
    alone = Halving.of(("divergence", "params"), {"params": (25.0, 100.0)}, 3, (), 2, losses.noise)
    assert (alone.last, alone.due([record(0, 50, 1.0)], {}, final=True)) == (0, None)


def test_plan_json_has_the_score_of_the_last_rung(finetuned, finetuned_result):
    for row in finetuned_result.front.itertuples():
        score = json.loads((finetuned["out"] / row.model / "plan.json").read_text())["score"]
        assert (score["divergence"], score["fidelity"]) == (row.divergence, 4)


def test_the_learning_rate_is_found_with_what_has_most_to_gain(job, monkeypatch):
    def watched(evaluator, fits, *more):
        tested.append({name: fit.plan for name, fit in fits.items()})
        return found(evaluator, fits, *more)

    tested, found = [], Evaluator.range_test
    monkeypatch.setattr(Evaluator, "range_test", watched)
    result = lrsearch.search(**{**job, **FINETUNED, "search": {**FINETUNED["search"], "control_points": 3}})
    knapsacks = [r for r in result._records if r.source == "knapsack" and not r.scores[0].at_chance(result._chance)]
    hardest = max(knapsacks, key=lambda r: r.scores[0].divergence)
    assert [set(plans.items()) for plans in tested] == [set(hardest.plan.layers.items())]


def test_the_loss_that_was_found_is_lowered_by_all_finetunes_and_kept_with_the_study(job, monkeypatch):
    found, lowered, run = [], [], Training.run
    both = RangeTest(torch.ones(9), loss="both", tried={0.003: torch.full((9,), 0.5)})
    monkeypatch.setattr(Evaluator, "range_test", lambda *_: found.append(both) or both)
    monkeypatch.setattr(Training, "run", lambda t, until: lowered.append((t.teacher.lowered, t.peak)) or run(t, until))
    for trials in (1, 3):  # the second time the study goes on
        before = len(lowered)
        lrsearch.search(**{**job, **FINETUNED, "search": {**FINETUNED["search"], "trials": trials}})
        assert len(lowered) > before
    assert len(found) == 1
    assert {loss for loss, _ in lowered} == {"both"}
    assert max(peak for _, peak in lowered) == 0.003
