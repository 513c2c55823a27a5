"""Studies in int8, the dense model in int8 as a control, and fronts that are measured though no latency was asked for."""

import json
from types import SimpleNamespace

import pytest
from jobs import Notes, searching

import lrsearch
from lrsearch.errors import ConfigError
from lrsearch.latency import survey as surveys
from lrsearch.latency.runner import Timing
from lrsearch.spec.config import StudyConfig
from lrsearch.spec.parse import parse
from lrsearch.study import latency as latencies
from lrsearch.study.study_folder import StudyFolder

FLOAT32, INT8 = 10.0, 4.0


@pytest.fixture
def small(job):
    return searching({**job, "space": lrsearch.Space()}, trials=1, control_points=1)


def ms(value):
    return Timing(value, value, value, value, 1)


def test_trials_of_an_int8_study_are_scored_rounded_and_what_is_saved_as_it_is(job, tmp_path):
    plain = lrsearch.search(**searching(job, trials=1))
    rounded = lrsearch.search(**searching({**job, "out": tmp_path / "int8"}, trials=1), deploy={"precision": "int8"})
    first, second = (r.trials[r.trials.source != "search"].set_index("trial") for r in (plain, rounded))
    assert (first.params == second.params).all()
    dense = second[second.source == "dense"].iloc[0] if (second.source == "dense").any() else second.iloc[0]
    assert dense.divergence > 0
    assert not (first.divergence == second.divergence).any()
    row = rounded.front.iloc[0]
    about = json.loads((rounded.folder / row.model / "plan.json").read_text())
    assert about["score"]["divergence"] == pytest.approx(row.divergence)
    assert about["float32"]["divergence"] != about["score"]["divergence"]
    x, y = job["score"]
    found = lrsearch.verify(rounded.folder / row.model, model=job["model"], score=(x, y))
    assert next(c for c in found.checks if c.name == "divergence").passed


@pytest.mark.slow
def test_int8_is_another_study_and_float16_is_not(job):
    lrsearch.search(**searching(job, trials=1))
    lrsearch.search(**searching(job, trials=1), deploy={"precision": "float16", "onnx_bytes": "1 MB"})
    with pytest.raises(lrsearch.errors.StudyError, match=r"got config\.deploy\.precision was 'float32', is 'int8'"):
        lrsearch.search(**searching(job, trials=1), deploy={"precision": "int8"})


@pytest.mark.parametrize(
    ("data", "message"),
    [({"deploy": {"precision": "int4"}}, r"deploy\.precision: must be 'float32', 'float16' or 'int8'"),
     ({"deploy": {"onnx_bytes": "small"}}, r"deploy\.onnx_bytes: must be a number and one of B"),
     ({"deploy": {"onnx_bytes": 0}}, r"deploy\.onnx_bytes: .*greater than 0"),
     ({"deploy": {"precision": "int8"}, "latency": {"backend": "torch"}}, "int8 needs a latency.backend that reads ONNX")],
)
def test_what_cannot_be_deployed_is_refused(data, message):
    with pytest.raises(ConfigError, match=message):
        parse(StudyConfig, data, "study.yaml")


@pytest.fixture
def dense_in_int8(monkeypatch):
    """On a clock on which the dense model takes 10 ms, and 4 in int8."""
    monkeypatch.setattr(surveys.Survey, "dense_in_each", lambda *_: {"float32": ms(FLOAT32), "int8": ms(INT8)})


def test_the_dense_model_in_int8_is_shown_beside_the_front(job, dense_in_int8, monkeypatch):
    monkeypatch.setattr(surveys.Survey, "runners", lambda self, plan, *_: [])
    monkeypatch.setattr(surveys, "built", lambda *_: [])
    monkeypatch.setattr(surveys, "interleaved", lambda models, *_, **__: [ms(FLOAT32) for _ in models])
    timed = {**job, "latency": {"backend": "onnxruntime"}, "objectives": ("kl", "latency_ms"), "budget": lrsearch.Budget(latency_ratio=1.0)}
    result = lrsearch.search(**searching(timed, trials=1))
    (row,) = result.dense_int8.to_dict("records")
    assert (row["source"], row["measured_ms"], row["latency_ms_ratio"]) == ("dense int8", INT8, INT8 / FLOAT32)
    assert 0 < row["divergence"] < 0.1
    assert row["metric_drop"] == pytest.approx(result.baseline.metric - row["metric"])
    assert "dense int8" not in set(result.front.source)
    assert "dense int8" in {trace.name for trace in result.plot().data}
    assert any(note.startswith("dense int8, which needs no search: ") for note in result.notes)
    monkeypatch.setattr(surveys.Survey, "dense_in_each", None)  # measured once for a study
    assert len(lrsearch.search(**searching(timed, trials=1)).dense_int8) == 1


@pytest.mark.parametrize("paced", [True])
def test_a_front_is_measured_at_the_end_and_what_is_slower_is_told(small, paced, monkeypatch):
    times = iter([FLOAT32] + [12.0] * 20)
    monkeypatch.setattr(surveys.Survey, "runners", lambda self, plan, *_: [])
    monkeypatch.setattr(surveys, "interleaved", lambda models, *_, **__: [ms(next(times)) for _ in models])
    told = Notes()
    small = {**small, "space": lrsearch.Space(rules=(lrsearch.Rule(families=("low-rank",)),))}
    result = lrsearch.search(**small, progress=told)
    assert set(result.front.measured_ms_ratio.dropna()) <= {1.0, 1.2}
    assert (result.front.measured_ms_ratio == 1.2).any()
    (warning,) = [note for note in told.notes if "slower" in note]
    assert "slower than the dense model on onnxruntime (threads 1, batch 1): trial " in warning
    assert " 1.20" in warning
    assert result.plot_latency() == []
    assert "measured, ms" in result.page.read_text()


@pytest.mark.parametrize("paced", [True])
def test_a_front_that_runs_as_the_dense_model_needs_no_clock(small, paced, monkeypatch):
    monkeypatch.setattr(surveys.Survey, "runners", None)
    sparse, told = {**small, "space": lrsearch.Space(rules=(lrsearch.Rule(families=("sparse",)),))}, Notes()
    lrsearch.search(**sparse, progress=told)
    assert [note for note in told.notes if note.startswith("the front takes as long as the dense model")]
    told.notes.clear()
    lrsearch.search(**sparse, progress=told, deploy={"measure": False})
    assert not [note for note in told.notes if note.startswith("the front takes")]


@pytest.mark.slow
@pytest.mark.parametrize("paced", [True])
def test_without_a_runtime_a_front_is_not_measured_and_nothing_fails(small, paced, monkeypatch):
    def missing(*_, **__):
        raise ConfigError("not installed", value="-", place="-", remedy="-")

    monkeypatch.setattr(latencies.Survey, "conditions", missing)
    told = Notes()
    assert "measured_ms" not in lrsearch.search(**small, progress=told).front
    assert not [note for note in told.notes if "latency" in note]


def test_what_dense_int8_is_ahead_of_is_told(tmp_path):
    folder, score = StudyFolder(tmp_path), {"divergence": 0.01}
    control = {"ms": INT8, "dense_ms": FLOAT32, "float32_ms": FLOAT32, "score": score}
    folder.save(folder.measured_front, {
        latencies.DENSE_INT8: control, "1": {"ms": 8.0, "dense_ms": FLOAT32}, "2": {"ms": 3.0, "dense_ms": FLOAT32},
    })
    members = [SimpleNamespace(number=number, score=SimpleNamespace(divergence=far)) for number, far in ((1, 0.02), (2, 0.5), (3, 0.6))]
    told = latencies.behind_int8(members, folder)
    assert told.startswith("dense int8 takes 0.40 of the latency at divergence 0.01: 1 of 2 members of the front are slower and lose more")
    assert latencies.behind_int8(members[1:], folder) == ""
