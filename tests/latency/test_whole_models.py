"""Whole models show how far the table of their layers can be trusted."""

from dataclasses import replace

import pytest

from lrsearch.latency import whole_models as module
from lrsearch.latency.runner import Timing
from lrsearch.latency.survey import Survey
from lrsearch.latency.table import Conditions, LatencyTable
from lrsearch.latency.whole_models import PROBES, corrected, probes
from lrsearch.spec.plan import LayerPlan
from lrsearch.spec.progress import Progress
from lrsearch.spec.space import Range, Rule, Space

RANKS = Range(min=0.1, max=0.6, steps=4)
MENUS = Space(rules=(Rule(families=("low-rank",), rank_ratio=RANKS),))
DENSE = 20.0


@pytest.fixture
def menus(layers):
    return MENUS.menus(layers)


@pytest.fixture
def table(survey) -> LatencyTable:
    """Dense layers take 2 ms, others a tenth of that a rank; the whole model 20 ms."""
    entries: dict = {}
    for job in survey.jobs:
        ms = 2.0 if job.choice.untouched else 0.2 * job.choice.rank[0]
        entries.setdefault(job.signature, {})[str(job.choice)] = Timing(ms, ms, ms, ms, 1)
    conditions = Conditions("onnxruntime", "1.0", 1, 1, "float32", "Some CPU")
    return LatencyTable(conditions, survey.architecture, Timing(DENSE, 0, 0, 0, 1), entries)


def saved(survey, table, plan):
    return sum(table.ms(survey.calls[n], LayerPlan()) - table.ms(survey.calls[n], p) for n, p in plan.layers.items())


@pytest.fixture
def whole(monkeypatch, survey, table):
    """Stands for the clock: in a slow moment whole models take ``slow`` times as long, and save ``share(plan)`` of what layers save."""
    def set_up(share, slow=1.0):
        def timed(models, threads, stage, advance):
            return [Timing(ms, ms, ms, ms, 1) for ms in models]

        monkeypatch.setattr(module, "timed", timed)
        monkeypatch.setattr(
            Survey, "runners", lambda self, plan, merged, conditions: slow * (DENSE - share(plan) * saved(survey, table, plan)),
        )
    return set_up


def test_probes_are_plans_of_the_menus_that_save_ever_more(survey, table, menus):
    found = probes(survey, table, menus)
    assert len(found) == PROBES
    assert all(plan[name] in menus[name] for plan in found for name in plan.layers)
    savings = [saved(survey, table, plan) for plan in found]
    assert savings == sorted(savings)
    assert 0 < savings[0] < savings[-1]


@pytest.mark.parametrize(("share", "slow"), [(1.0, 1.0), (0.7, 1.0), (1.3, 1.5)])
def test_what_whole_models_take_and_save_is_learnt_in_any_moment(survey, table, menus, whole, share, slow):
    whole(lambda plan: share, slow)
    made = corrected(survey, table, menus, Progress())
    assert made.dense.ms == slow * DENSE
    assert made.scale == pytest.approx(slow * share)
    assert made.stray == pytest.approx(0, abs=1e-9)
    assert replace(made, scale=1.0, stray=0.0, dense=table.dense) == table


def test_what_the_scale_does_not_explain_is_the_stray(survey, table, menus, whole):
    shares = {plan.fingerprint: 1 + 0.2 * (-1) ** i for i, plan in enumerate(probes(survey, table, menus))}
    whole(lambda plan: shares.get(plan.fingerprint, 1.0))
    made = corrected(survey, table, menus, Progress())
    assert 0.9 < made.scale < 1.1
    assert 0.01 < made.stray < 0.2


def test_where_nothing_is_faster_than_dense_nothing_is_learnt(survey, table, menus):
    slow = {s: {c: t if c == "dense" else t._replace(ms=3.0) for c, t in each.items()} for s, each in table.entries.items()}
    slow_table = replace(table, entries=slow)
    assert corrected(survey, slow_table, menus, Progress()) is slow_table
