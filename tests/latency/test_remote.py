import json

import pytest

from lrsearch.errors import LatencyError
from lrsearch.latency.remote import ingest, pack
from lrsearch.latency.survey import Survey


@pytest.fixture
def packed(survey, tmp_path):
    pack(survey, tmp_path, 1, lambda: None)
    jobs = json.loads((tmp_path / "jobs.json").read_text())
    times = {"version": "1.0", "cpu": "Phone", "load": 0.0, "date": "then", "fingerprint": jobs["fingerprint"],
             "times": [[i + 1.0, 1, 1, 1, 1] for i in range(len(jobs["models"]))]}
    (tmp_path / "times.json").write_text(json.dumps(times))
    return tmp_path


def test_what_was_timed_elsewhere_becomes_a_table(survey, packed):
    table = ingest(survey, packed, 1)
    assert (table.dense.ms, table.conditions.cpu, table.conditions.version) == (1.0, "Phone", "1.0")
    assert [table.entries[j.signature][str(j.choice)].ms for j in survey.jobs] == [i + 2.0 for i in range(len(survey.jobs))]
    table.refuse_others(survey.architecture, survey.conditions("onnxruntime", 1, "Phone"), "here")


def test_times_of_another_study_are_refused(survey, packed, tiny_model, tiny_data, layers, menus):
    for other, threads in ((Survey.of(tiny_model, layers, menus, tiny_data[0], 2), 1), (survey, 2)):
        with pytest.raises(LatencyError, match=r"times\.json: the times must be of this study.*Pack the study again"):
            ingest(other, packed, threads)


@pytest.mark.parametrize("text", [None, "no json", "{}", "[1]", '{"times": [[1]]}'])
def test_missing_or_damaged_times_are_refused(survey, tmp_path, text):
    if text is not None:
        (tmp_path / "times.json").write_text(text)
    with pytest.raises(LatencyError, match=r"times\.json: .*Run runner\.py"):
        ingest(survey, tmp_path, 1)


def test_a_folder_that_cannot_be_written_is_one_error(survey, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LatencyError, match="must be writable"):
        pack(survey, tmp_path / "file", 1, lambda: None)
