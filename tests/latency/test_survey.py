
import sys

import pytest
import torch

from lrsearch.errors import ConfigError, LatencyError
from lrsearch.latency import survey as module
from lrsearch.latency.runner import ROUNDS
from lrsearch.latency.survey import Survey


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch):
    interleaved = module.interleaved
    monkeypatch.setattr(module, "interleaved", lambda models, threads, advance, rounds: interleaved(models, threads, advance, rounds=1))
    monkeypatch.setattr(module.runner, "MOST_ROUNDS", 1)


def test_everything_is_measured_once(survey, tiny_model, left_alone):
    steps, threads = [], torch.get_num_threads()
    conditions = survey.conditions("onnxruntime", 1)
    with left_alone(tiny_model):
        table = survey.measure(conditions, lambda title, total: steps.append((title, total)), lambda: None)
    assert steps == [("Building models", len(survey.jobs) + 1), ("Timing models", ROUNDS)]
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


def test_what_was_timed_with_other_operators_in_int8_is_measured_anew(survey, monkeypatch):
    float32, int8 = (survey.conditions("onnxruntime", 1, precision=precision) for precision in ("float32", "int8"))
    before = survey.fingerprint(float32), survey.fingerprint(int8)
    monkeypatch.setattr(sys.modules[Survey.__module__], "REVISION", -1)
    assert survey.fingerprint(float32) == before[0]
    assert survey.fingerprint(int8) != before[1]


def test_in_int8_layers_are_quantised_before_they_are_timed(survey, monkeypatch):
    quantised, made = [], module.quantised_to_time
    monkeypatch.setattr(module, "quantised_to_time", lambda model: quantised.append(1) or made(model))
    conditions = survey.conditions("onnxruntime", 1, precision="int8")
    table = survey.measure(conditions, lambda *_: None, lambda: None)
    assert len(quantised) == len(survey.jobs) + 1
    assert (table.conditions.dtype, survey.conditions("onnxruntime", 1, precision="float16").dtype) == ("int8", "float32")
    assert survey.covers(table, conditions)
    assert not survey.covers(table, survey.conditions("onnxruntime", 1))
    with pytest.raises(LatencyError, match="the table must be of the dtype asked for; got int8, not float32"):
        table.refuse_others(survey.architecture, survey.conditions("onnxruntime", 1), "here.json")


def test_int8_needs_a_backend_that_reads_onnx(survey):
    with pytest.raises(ConfigError, match=r"latency\.backend: int8 needs a backend that reads ONNX; got torch"):
        survey.conditions("torch", 1, precision="int8")


def test_the_dense_model_is_timed_in_float32_and_int8(survey):
    found = survey.dense_in_each(survey.conditions("onnxruntime", 1), lambda *_: None, lambda: None)
    assert list(found) == ["float32", "int8"]
    assert all(timing.ms > 0 for timing in found.values())
    assert survey.dense_in_each(survey.conditions("torch", 1), lambda *_: None, lambda: None) == {}
