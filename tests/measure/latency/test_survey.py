import json

import pytest
import torch

from lrsearch.errors import LatencyError
from lrsearch.measure.latency import survey as module
from lrsearch.measure.latency.runner import ROUNDS
from lrsearch.measure.latency.survey import Survey


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch):
    interleaved = module.interleaved
    monkeypatch.setattr(module, "interleaved", lambda runners, advance: interleaved(runners, advance, rounds=1))
    monkeypatch.setattr(module.runner, "MOST_ROUNDS", 1)


def test_everything_is_measured_once(survey, tiny_model, left_alone):
    steps, threads = [], torch.get_num_threads()
    conditions = survey.conditions("onnxruntime", 1)
    with left_alone(tiny_model):
        table = survey.measure(conditions, lambda title, total: steps.append((title, total)), lambda: None)
    assert steps == [("Building", len(survey.jobs) + 1), ("Timing", ROUNDS)]
    assert survey.covers(table, survey.conditions("onnxruntime", 1))
    assert {(s, c) for s, each in table.entries.items() for c in each} == {(j.signature, str(j.choice)) for j in survey.jobs}
    assert all(t.ms > 0 for each in table.entries.values() for t in each.values())
    assert torch.get_num_threads() == threads
    assert (table.conditions.batch, table.conditions.dtype, table.conditions.threads) == (1, "float32", 1)
    assert table.conditions.date


def test_a_table_is_named_by_its_conditions_model_and_choices(survey, tiny_model, tiny_data, layers, menus):
    one = survey.conditions("onnxruntime", 1)
    others = [
        survey.fingerprint(survey.conditions("onnxruntime", 2)), survey.fingerprint(survey.conditions("torch", 1)),
        Survey.of(tiny_model, layers, menus, tiny_data[0], 3).fingerprint(one),
        Survey.of(tiny_model, layers, {n: m[:1] for n, m in menus.items()}, tiny_data[0], 1).fingerprint(one),
    ]
    assert len({survey.fingerprint(one), *others}) == 5
    assert survey.fingerprint(survey.conditions("onnxruntime", 1)) == survey.fingerprint(one)


@pytest.fixture
def packed(survey, tmp_path):
    survey.pack(tmp_path, 1, lambda: None)
    jobs = json.loads((tmp_path / "jobs.json").read_text())
    times = {"version": "1.0", "cpu": "Phone", "load": 0.0, "date": "then", "fingerprint": jobs["fingerprint"],
             "times": [[i + 1.0, 1, 1, 1, 1] for i in range(len(jobs["models"]))]}
    (tmp_path / "times.json").write_text(json.dumps(times))
    return tmp_path


def test_what_was_timed_elsewhere_becomes_a_table(survey, packed):
    table = survey.ingest(packed, 1)
    assert (table.dense.ms, table.conditions.cpu, table.conditions.version) == (1.0, "Phone", "1.0")
    assert [table.entries[j.signature][str(j.choice)].ms for j in survey.jobs] == [i + 2.0 for i in range(len(survey.jobs))]
    table.refuse_others(survey.architecture, survey.conditions("onnxruntime", 1, "Phone"), "here")


def test_times_of_another_study_are_refused(survey, packed, tiny_model, tiny_data, layers, menus):
    for other, threads in ((Survey.of(tiny_model, layers, menus, tiny_data[0], 2), 1), (survey, 2)):
        with pytest.raises(LatencyError, match=r"times\.json: the times must be of this study.*Pack the study again"):
            other.ingest(packed, threads)


@pytest.mark.parametrize("text", [None, "no json", "{}", "[1]", '{"times": [[1]]}'])
def test_missing_or_damaged_times_are_refused(survey, tmp_path, text):
    if text is not None:
        (tmp_path / "times.json").write_text(text)
    with pytest.raises(LatencyError, match=r"times\.json: .*Run runner\.py"):
        survey.ingest(tmp_path, 1)


def test_a_folder_that_cannot_be_written_is_one_error(survey, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LatencyError, match="must be writable"):
        survey.pack(tmp_path / "file", 1, lambda: None)
