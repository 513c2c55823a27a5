"""The latencies of the tiny network: its survey, and a table by hand."""

import pytest

from lrsearch.latency.runner import Timing
from lrsearch.latency.survey import Survey
from lrsearch.latency.table import Conditions, LatencyTable
from lrsearch.spec.space import Range, Rule, Space

HALF, RANKS = Range(min=0.5, max=0.5, steps=1), Range(min=0.2, max=0.4, steps=2)
SPACE = Space(rules=(Rule(density=HALF, rank_ratio=RANKS, patterns=("unstructured", "column")),))


def timing(ms: float) -> Timing:
    return Timing(ms, ms, ms, ms, 1)


@pytest.fixture
def menus(layers):
    return SPACE.menus(layers)


@pytest.fixture
def survey(tiny_model, tiny_data, layers, menus) -> Survey:
    return Survey.of(tiny_model, layers, menus, tiny_data[0][:2], 1)


@pytest.fixture
def table(survey) -> LatencyTable:
    """Dense layers take 1 ms, low-rank ones their rank's tenth, columns 1.5 ms; the whole model takes 10 ms."""
    entries: dict = {}
    for job in survey.jobs:
        ms = 1.0 if job.choice.untouched else job.choice.rank[0] / 10 if not job.choice.density else 1.5
        entries.setdefault(job.signature, {})[str(job.choice)] = timing(ms)
    conditions = Conditions("onnxruntime", "1.0", 1, 1, "float32", "Some CPU", 0.5, "today")
    return LatencyTable(conditions, survey.architecture, timing(10), entries)
