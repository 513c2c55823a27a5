from dataclasses import replace
from math import log10
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lrsearch.report.choices import Choices
from lrsearch.report.figure import series
from lrsearch.report.frame import comparison, front_frame, rungs_frame, trials_frame, with_recovered
from lrsearch.spec.front import hypervolume
from lrsearch.spec.score import Score

OBJECTIVES = ("divergence", "params")


@pytest.fixture
def trials(records, dense, baseline):
    return trials_frame(records, dense, baseline, OBJECTIVES)


def test_a_row_per_trial_against_the_dense_model(trials, records, dense, baseline):
    assert list(trials.trial) == [r.number for r in records]
    assert np.allclose(trials.metric_drop, baseline.metric - trials.metric)
    for metric in ("params", "macs", "nonzero_macs", "weight_bytes"):
        assert np.allclose(trials[f"{metric}_ratio"], trials[metric] / getattr(dense, metric))
    assert (trials[["sparse_layers", "low_rank_layers", "low_rank_sparse_layers"]] == [2, 1, 1]).all().all()


def test_scores_are_of_the_last_rung_beside_those_before_finetuning(trials):
    row = trials[trials.trial == 4].iloc[0]
    assert (row.divergence, row.divergence_before_finetune, row.finetune_steps) == (0.1, 0.2, 5)
    assert (row.metric, row.metric_before_finetune) == pytest.approx((0.85, 0.75))
    assert list(trials.rung) == [0, 0, 1, 1, 1, 0]


def test_the_error_of_a_metric_may_be_unknown(records, dense, baseline):
    known = [replace(records[0], scores=(Score(0.9, 0.0, 0.0, 0, False, 0.004),)), *records[1:]]
    assert trials_frame(known, dense, baseline, OBJECTIVES).metric_stderr.fillna(-1).tolist() == [0.004, -1, -1, -1, -1, -1]


def test_plans_are_counted_at_every_rung_that_they_reached(records):
    counts = rungs_frame([*records, replace(records[3], number=9, twin=4)])
    assert counts.to_dict("list") == {
        "rung": [0, 1], "finetune_steps": [0, 5], "plans": [6, 3], "searched": [3, 2], "controls": [3, 1],
    }
    assert rungs_frame([]).empty


def test_the_front_is_of_complete_trials_from_large_to_small(trials):
    front = front_frame(trials, OBJECTIVES, Path())
    assert list(front.trial) == [0, 4, 5]
    assert list(front.index) == [0, 1, 2]
    assert list(front.model) == ["models/0000", "models/0004", "models/0005"]


def test_the_front_is_of_the_objectives(records, dense, baseline):
    records = [r for r in records if r.source != "dense"]
    assert list(front_frame(trials_frame(records, dense, baseline, ("divergence", "macs")), ("divergence", "macs"), Path()).trial) == [4, 5]
    by_metric = trials_frame([*records, records[0]], dense, baseline, ("metric", "weight_bytes"))
    assert list(front_frame(by_metric, ("metric", "weight_bytes"), Path()).trial) == [4, 5]


@pytest.mark.parametrize(
    ("objectives", "points"),
    [
        (("divergence", "params"), {"search": [(-1.0, 0.4), (0.0, 0.2)], "uniform": [(log10(0.4), 0.5)], "knapsack": [(-1.0, 0.5)]}),
        (("metric", "macs"), {"search": [(-0.85, 0.4), (-0.5, 0.2)], "uniform": [(-0.7, 0.5)], "knapsack": [(-0.8, 0.5)]}),
    ],
    ids=["divergence", "metric"],
)
def test_the_comparison_is_the_hypervolume_of_each_sources_own_plans(records, dense, objectives, points):
    table = comparison(records, dense, objectives)
    reference = table.attrs["reference"]
    assert reference == pytest.approx([max(p[0] for ps in points.values() for p in ps), 1.0], abs=1e-8)
    assert list(table.source) == ["search", "uniform", "sparse-only", "low-rank-only", "knapsack", "all controls", "all"]
    points = points | {"all controls": points["uniform"] + points["knapsack"], "all": [p for ps in points.values() for p in ps]}
    for row in table.itertuples():
        mine = points.get(row.source, [])
        assert row.plans == len(mine)
        assert row.hypervolume == pytest.approx(hypervolume(np.array(mine).reshape(-1, 2), reference), abs=1e-7)
    volume = dict(zip(table.source, table.hypervolume, strict=True))
    assert volume["search"] > volume["knapsack"] > volume["uniform"] > volume["sparse-only"] == 0
    assert volume["all"] == pytest.approx(volume["search"])  # which dominates the controls


def test_there_may_be_nothing_to_compare(records, dense):
    assert comparison([], dense, OBJECTIVES).empty
    assert comparison(records[:1], dense, OBJECTIVES).empty


def test_recovered_models_join_the_front_and_displace_nobody(trials, records, dense, baseline):
    better, worse = (
        replace(r, scores=(*r.scores, Score(metric, kl, 0.01, 90, False)), model=f"models/recovered-{r.number:04d}")
        for r, metric, kl in ((records[2], 0.89, 0.02), (records[3], 0.7, 0.3))
    )
    whole = with_recovered(trials, [better, worse], records, dense, baseline, OBJECTIVES)
    assert whole.recovered.tolist() == [False] * len(records) + [True, True]
    front = front_frame(whole, OBJECTIVES, Path())
    assert front[~front.recovered].model.tolist() == front_frame(trials, OBJECTIVES, Path()).model.tolist()
    assert front[front.recovered].model.tolist() == ["models/recovered-0003"]
    assert front[front.recovered].finetune_steps.tolist() == [90]
    (entry,) = [s for s in series(whole) if s.name == "recovered"]
    assert len(entry.points) == 2


def test_one_begins_at_the_knee_unless_it_loses_much(baseline):
    why = ["largest", "≤ 1 points", "knee", "smallest"]
    rows = pd.DataFrame({"why": why, "metric_drop": [0.0, 0.01, 0.04, 0.3], "source": "search"})
    assert Choices(rows, 0, "").first == 1
    assert Choices(rows.assign(metric_drop=[0.0, 0.01, 0.015, 0.3]), 0, "").first == 2
    assert Choices(rows.assign(metric_drop=np.nan, why=["largest", "", "knee", "smallest"]), 0, "").first == 2
    assert Choices(rows.assign(metric_drop=0.5), 0, "").first == 2  # as all of them lose much
    assert Choices(rows.assign(metric_drop=0.5, why=""), 0, "").first == 3
    assert Choices(rows[:0], 0, "").first is None
