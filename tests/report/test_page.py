import re

import pytest

from lrsearch.report.figure import front_figure
from lrsearch.report.frame import comparison, front_frame, rungs_frame, trials_frame
from lrsearch.report.page import page

OBJECTIVES = ("kl", "params")


@pytest.fixture
def html(records, dense, baseline):
    trials = trials_frame(records, dense, baseline, OBJECTIVES)
    figure = front_figure(trials, OBJECTIVES, "a title")
    return page("<digits> & co", figure, front_frame(trials, OBJECTIVES), comparison(records, dense, OBJECTIVES), rungs_frame(records))


def test_the_page_opens_offline(html):
    assert not re.findall(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)\s*=", html)
    assert len(html) > 1_000_000  # plotly itself is inside
    assert 'charset="utf-8"' in html


def test_the_page_has_the_names_and_numbers(html):
    cells = re.findall(r"<td>(.*?)</td>", html)
    assert {"search", "uniform", "sparse-only", "low-rank-only", "knapsack", "dense", "models/0004"} <= set(cells)
    assert {"85.00 %", "5.00", "0.1000", "400", "40.0 %", "4,000"} <= set(cells)
    assert "How far the plans went" in html
    assert "<title>&lt;digits&gt; &amp; co: front</title>" in html


def test_a_front_without_members(records, dense, baseline):
    trials = trials_frame(records[-1:], dense, baseline, OBJECTIVES)
    figure, rungs = front_figure(trials, OBJECTIVES, "x"), rungs_frame(records[-1:])
    html = page("x", figure, front_frame(trials, OBJECTIVES), comparison(records[-1:], dense, OBJECTIVES), rungs)
    assert "How far" not in html
    assert "No complete trial." in html
