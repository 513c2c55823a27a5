import json
import re
from pathlib import Path

import pytest

from lrsearch.report.choices import choices
from lrsearch.report.frame import comparison, front_frame, rungs_frame, trials_frame
from lrsearch.report.header import header
from lrsearch.report.page import page
from lrsearch.report.page_data import PageData
from lrsearch.report.picture import front_picture
from lrsearch.report.summary import choice_table, counted, notes, sized
from lrsearch.spec.config import StudyConfig

OBJECTIVES = ("divergence", "params")


def test_the_page_opens_offline_and_no_name_is_markup(data):
    html = page("<digits> & co", data.to_dict())
    assert not re.findall(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)\s*=", html)
    assert len(html) > 1_000_000  # plotly itself is inside
    assert "<title>&lt;digits&gt; &amp; co: report</title>" in html
    assert "alert(1)</script>" not in html
    told = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1])
    assert told["header"] == [["model", "</script><script>alert(1)</script>"]]
    assert told["limits"] == {"params": [500.0, 0.5]}


def test_points_have_costs_scores_and_whether_they_guess(data):
    points = {p["id"]: p for p in data.to_dict()["points"]}
    assert set(points) == {"0", "1", "3", "4", "5"}  # 6 did not reach the last rung
    assert points["4"]["costs"]["params"] == [400.0, 0.4]
    assert (points["4"]["metric"], points["4"]["divergence"], points["4"]["front"]) == (85.0, 0.1, True)
    assert [i for i, p in points.items() if p["at_chance"]] == ["5"]
    assert points["4"]["about"].startswith("trial 4 (search)<br>params 400 (40.0%)")


def test_the_volume_grows_with_the_plans(data):
    volume = data.to_dict()["volume"]
    assert volume["plans"] == [1, 2, 3, 4, 5]
    assert volume["volume"] == sorted(volume["volume"])
    assert volume["volume"][-1] == pytest.approx(float(data.comparison.hypervolume.iloc[-1]))
    assert volume["minutes"] == [0, 1, 3, 4, 5]


def test_a_study_without_a_complete_plan_has_a_page(records, dense, baseline):
    trials = trials_frame(records[-1:], dense, baseline, OBJECTIVES)
    front = front_frame(trials, OBJECTIVES, Path())
    found = choices(front, OBJECTIVES, baseline)
    table = choice_table(found, dense, baseline, OBJECTIVES)
    data = PageData([], trials, front, records[-1:], dense, OBJECTIVES, {}, table, notes(found, 0), comparison([], dense, OBJECTIVES),
                    rungs_frame(records[-1:]), "")
    assert data.to_dict()["points"] == []
    assert page("x", data.to_dict())


def test_who_guesses_is_neither_in_the_table_nor_in_the_picture(trials, dense, baseline):
    front = front_frame(trials, OBJECTIVES, Path())
    found = choices(front, OBJECTIVES, baseline)
    table = choice_table(found, dense, baseline, OBJECTIVES)
    assert list(table["#"]) == ["dense", "1"]
    assert list(table["size"]) == ["3.91 KiB", "1.56 KiB"]
    assert list(table["params %"]) == ["", "40.0%"]
    assert found.left_out == 1
    assert "1 of the front's 3 models is no better than chance, and left out here." in notes(found, 3)
    picture = front_picture(trials, OBJECTIVES)
    assert picture.count("<title>") == 4
    assert "20.0 %" not in picture


def test_rows_say_what_they_are_for(records, dense, baseline):
    front = front_frame(trials_frame(records, dense, baseline, OBJECTIVES), OBJECTIVES, Path())
    rows = choices(front, OBJECTIVES, baseline).rows
    assert dict(rows.why) == {0: "no loss, largest", 1: "", 2: "smallest"}


def test_what_is_told_to_begin_with_is_not_the_dense_model(records, dense, baseline):
    found = choices(front_frame(trials_frame(records, dense, baseline, OBJECTIVES), OBJECTIVES, Path()), OBJECTIVES, baseline)
    assert list(found.rows.source) == ["dense", "search", "search"]
    assert found.first == 2  # as none loses at most 2 points, and there is no knee
    alone = choices(front_frame(trials_frame(records[:1], dense, baseline, OBJECTIVES), OBJECTIVES, Path()), OBJECTIVES, baseline)
    assert alone.first == 0


@pytest.mark.parametrize(("model", "title"), [
    ("models/0004", "row 1 of the front, models/0004: FAILED"), ("models/0099", "models/0099, which is not on the front now: FAILED"),
    ("", "mine: FAILED"),
])  # fmt: skip
def test_a_certificate_says_which_row_it_is_of(data, model, title):
    from dataclasses import replace

    from lrsearch.report.certificate import Certificate, Origin
    from lrsearch.spec.config import StudyConfig

    certificate = Certificate(Origin(StudyConfig(name="mine"), model=model))
    assert replace(data, certificates=[certificate]).to_dict()["certificates"][0]["title"] == title


def test_what_the_data_cannot_tell_is_not_claimed(records, dense, baseline):
    from dataclasses import replace

    wide = [replace(r, scores=tuple(replace(s, metric_stderr=0.008) for s in r.scores)) for r in records]
    front, known = front_frame(trials_frame(wide, dense, baseline, OBJECTIVES), OBJECTIVES, Path()), replace(baseline, metric_stderr=0.003)
    found = choices(front, OBJECTIVES, known)  # twice the root of 0.8² and 0.3² is 1.7 points
    assert found.rows.why[0] == "no loss, largest"
    assert found.told == "10,000 score examples tell a drop of one model to ± 1.7 points or better (95 %)."


def test_score_data_that_are_all_right_tell_little(records, dense, baseline):
    from dataclasses import replace

    front = front_frame(trials_frame(records, dense, baseline, OBJECTIVES), OBJECTIVES, Path())
    assert choices(front, OBJECTIVES, replace(baseline, metric=1.0, metric_stderr=0.0)).told.startswith("The dense model gets all of the")


def test_sizes_and_counts_have_three_digits():
    assert [sized(57_100), sized(2_345_000), sized(512 * 1024)] == ["55.8 KiB", "2.24 MiB", "512 KiB"]
    assert [counted(578_000), counted(1_430_000_000), counted(12)] == ["578 k", "1.43 G", "12"]


def test_the_header_says_what_the_study_is_of(dense, baseline):
    config = StudyConfig(budget={"weight_bytes": "512 KiB", "macs": 0.5}, model={"timm": "resnet18", "pretrained": True})
    found = dict(header(config, dense, baseline, {"date": "2026-01-01", "torch": "2.6", "cpu": "an EPYC"}, {}))
    assert found["model"] == "resnet18, pretrained: 1 k parameters, 10 k MACs, 3.91 KiB, metric 90.00%"
    assert found["budget"] == "weight_bytes ≤ 512 KiB, macs ≤ 50.0% of dense"
    assert (found["versions"], found["device"], found["data"]) == ("torch 2.6", "cpu, an EPYC", "given from Python")
