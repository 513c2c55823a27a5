"""A saved or exported model is loaded anew, and what was claimed of it is found out again."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import timm
import torch
from outputs import reference_of
from torch import nn

import lrsearch
from lrsearch.compress import artifact
from lrsearch.compress.apply import compress
from lrsearch.compress.inventory import inventory
from lrsearch.compress.storage import Storage
from lrsearch.errors import ArtifactError, ConfigError
from lrsearch.latency.backends import OnnxRuntime
from lrsearch.latency.runner import Timing
from lrsearch.measure.count import cost_model, dense_macs
from lrsearch.report.certificate import Certificate, Origin
from lrsearch.spec.config import ProxyConfig, StudyConfig
from lrsearch.spec.plan import LayerPlan, Plan
from lrsearch.task.data import Examples
from lrsearch.workflows.steps import export_folder as export
from lrsearch.workflows.steps import retime, without_model
from lrsearch.workflows.steps.findings import Findings
from lrsearch.workflows.steps.verify_folder import digest

PLAN = Plan({
    "stem": LayerPlan("svd", (4,), 0.1), "depthwise": LayerPlan(density=0.5), "grouped": LayerPlan(density=0.3),
    "pointwise": LayerPlan("svd", (4,), 0.0), "head": LayerPlan(density=0.25, pattern="column"),
})  # fmt: skip


@pytest.fixture(autouse=True)
def no_clock(monkeypatch):
    """The model takes 6 ms, the dense one 8, and 4 in int8; nothing is built for it."""
    monkeypatch.setattr(OnnxRuntime, "build", lambda *_: None)
    monkeypatch.setattr(OnnxRuntime, "model", lambda *_: b"")
    monkeypatch.setattr(retime, "quantised_to_time", lambda model: model)
    monkeypatch.setattr(OnnxRuntime, "load", lambda *_: None)
    times = [Timing(ms, ms, ms, ms, 1) for ms in (6.0, 8.0, 4.0)]
    monkeypatch.setattr(retime, "interleaved", lambda models, threads, rounds: times[: len(models)])


@pytest.fixture
def scoring(tiny_data):
    return tiny_data[0][:60], tiny_data[1][:60]


@pytest.fixture
def costs(tiny_model, layers, tiny_data):
    return cost_model(tiny_model, layers, tiny_data[0][:2])


@pytest.fixture
def plan():
    return PLAN


@pytest.fixture
def saved(tiny_model, layers, white_fits, costs, scoring, tmp_path, plan):
    model, examples = compress(tiny_model, layers, plan, white_fits(tiny_model, layers, plan)), Examples(scoring, "score")
    reference = reference_of(tiny_model, examples, 20)
    found, dense = (reference.compare(m).score(0, False, "") for m in (model, tiny_model))
    about = {
        "lrsearch": "0.1.0", "model": None, "split": [], "dense": costs.dense.to_dict(), "baseline": dense.to_dict(),
        "cost": costs(plan).to_dict(), "score": found.to_dict(),
    }
    artifact.save(model, plan, tmp_path / "saved", about, Storage(layers))
    return tmp_path / "saved"


@pytest.fixture
def exported(saved, tiny_model, scoring, tmp_path, monkeypatch):
    """Without a real ONNX model, which takes seconds."""
    monkeypatch.setattr(export, "onnx_form", lambda *_: b"onnx")
    origin = Origin(StudyConfig(), dense=digest(tiny_model), inputs={"shape": [3, 12, 12], "dtype": "float32"})
    export.write_folder(saved, tmp_path / "exported", tiny_model, scoring[0][:2], origin)
    return tmp_path / "exported"


def missed(certificate):
    return [check.name for check in certificate.failures]


def test_a_saved_model_is_counted_and_scored_again(saved, tiny_model, scoring, costs, left_alone):
    with left_alone(tiny_model):
        found = lrsearch.verify(saved, model=tiny_model, score=scoring, budget={"params": 0.9, "latency_ratio": 0.8}, latency={})
    assert found.passed, found.failures
    cost = costs(PLAN)
    for metric in ("params", "macs", "nonzero_macs", "weight_bytes"):
        assert found.figures[metric] == getattr(cost, metric)
    assert found.figures["latency_ms_ratio"] == 0.75
    assert found.figures["peak_bytes"] > 0
    running = lrsearch.deployed(lrsearch.load(saved, tiny_model), scoring[0][:1])
    assert found.figures["deployed_macs"] == dense_macs(running, scoring[0][:1])
    assert found.figures["deployed_macs_ratio"] == found.figures["deployed_macs"] / costs.dense.macs
    assert {"metric", "dense metric", "divergence", "budget params", "budget latency_ratio"} <= {c.name for c in found.checks}
    assert set(found.unchecked) == {"onnx"}


def test_limits_that_do_not_hold_are_missed_by_so_much(saved, tiny_model, scoring):
    found = lrsearch.verify(saved, model=tiny_model, score=scoring, budget={"latency_ms": 5.0, "macs": 1.0}, latency={})
    assert missed(found) == ["budget latency_ms"]
    assert found.failures[0].margin == pytest.approx(-0.2)


def test_claims_that_are_not_so_fail(saved, tiny_model, scoring):
    about = json.loads((saved / "plan.json").read_text())
    about["cost"]["params"] += 1
    about["score"]["divergence"] += 0.1
    (saved / "plan.json").write_text(json.dumps(about))
    assert missed(lrsearch.verify(saved, model=tiny_model, score=scoring)) == ["params", "divergence"]


@pytest.mark.parametrize("plan", [Plan({"pointwise": LayerPlan(density=0.5)})], ids=["a light plan"])
def test_a_small_divergence_that_is_claimed_smaller_still_fails(saved, tiny_model, scoring):
    honest = lrsearch.verify(saved, model=tiny_model, score=scoring)
    assert honest.passed, honest.failures
    assert 1e-4 < honest.figures["divergence"] < 1e-3
    about = json.loads((saved / "plan.json").read_text())
    about["score"]["divergence"] /= 2
    (saved / "plan.json").write_text(json.dumps(about))
    assert missed(lrsearch.verify(saved, model=tiny_model, score=scoring)) == ["divergence"]


def test_without_data_counts_are_checked_all_the_same(exported, tiny_model):
    found = lrsearch.verify(exported, model=tiny_model)
    assert found.passed
    assert found.unchecked.keys() == {"metric", "divergence", "onnx"}
    assert found.figures["onnx_bytes"] == len(b"onnx")
    assert "params" in {c.name for c in found.checks}


def test_without_onnxruntime_it_is_said_what_was_not_checked(exported, tiny_model, scoring, monkeypatch):
    def missing(*_):
        raise ConfigError("this backend needs the package onnxruntime", value="not installed", place="latency.backend", remedy="-")

    monkeypatch.setattr(OnnxRuntime, "version", missing)
    found = lrsearch.verify(exported, model=tiny_model, score=scoring, budget={"latency_ms": 7.0}, latency={})
    assert found.passed
    assert found.unchecked.keys() == {"onnx", "latency", "budget latency_ms"}
    assert all("needs the package onnxruntime" in why for why in found.unchecked.values())


def test_a_limit_of_another_processor_is_not_checked_here(exported, tiny_model, scoring):
    made = Certificate.load(exported)
    replace(made, origin=replace(made.origin, cpu="Phone")).save(exported)
    found = lrsearch.verify(exported, model=tiny_model, score=scoring, budget={"latency_ms": 1.0}, latency={})
    assert "budget latency_ms" not in missed(found)
    assert "of Phone, this is" in found.unchecked["budget latency_ms"]


def test_other_data_are_scored_but_not_compared(exported, tiny_model, tiny_data):
    made = Certificate.load(exported)
    replace(made, origin=replace(made.origin, data="another")).save(exported)
    found = lrsearch.verify(exported, model=tiny_model, score=(tiny_data[0][60:], tiny_data[1][60:]))
    assert found.unchecked["divergence"] == "these are not the score data of the study"
    assert found.figures["examples"] == 100


@pytest.mark.parametrize("name", ["weights.safetensors", "plan.json", "model.onnx"])
def test_a_file_that_is_not_as_it_was_or_missing_is_one_clear_error(exported, tiny_model, scoring, name):
    data = bytearray((exported / name).read_bytes())
    data[-1] ^= 1
    (exported / name).write_bytes(data)
    with pytest.raises(ArtifactError, match=rf"{name}: every byte must be as it was exported; got sha256"):
        lrsearch.verify(exported, model=tiny_model, score=scoring)
    (exported / name).unlink()
    with pytest.raises(ArtifactError, match=rf"{name}: the folder must be whole; got No such file"):
        lrsearch.verify(exported, model=tiny_model, score=scoring)


def test_another_base_is_refused(exported, tiny_model, scoring):
    with pytest.raises(ArtifactError, match="every layer of the file must be a layer of the base model"):
        lrsearch.verify(exported, model=nn.Sequential(nn.Linear(3, 3)), score=scoring)
    with torch.no_grad():
        tiny_model.head.bias += 1
    with pytest.raises(ArtifactError, match="model: the dense model must be the study's, value for value"):
        lrsearch.verify(exported, model=tiny_model, score=scoring)


def test_without_the_model_the_rest_is_checked(exported, scoring, costs):
    found = lrsearch.verify(exported, score=scoring, budget={"params": 0.9, "weight_bytes": 1e6})
    assert found.passed
    assert {c.name: c.found for c in found.checks} == {n: costs(PLAN).weight_bytes for n in ("weight_bytes", "budget weight_bytes")}
    assert found.figures["onnx_bytes"] == len(b"onnx")
    needing = {"params", "macs", "nonzero_macs", "dense model", "metric", "divergence", "peak_bytes", "latency", "budget params"}
    assert {name for name, why in found.unchecked.items() if why == "needs the model, give --study"} == needing
    assert "ONNX Runtime must be able to read the model" in found.unchecked["onnx"]
    assert "passed as far as it was checked" in found.markdown()


def test_without_the_model_onnx_is_read_and_timed(saved, tiny_model, scoring, tmp_path):
    origin = Origin(StudyConfig(latency={"batch": 3}), dense=digest(tiny_model), inputs={"shape": [3, 12, 12], "dtype": "float32"})
    export.write_folder(saved, tmp_path / "real", tiny_model, scoring[0][:2], origin)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retime, "interleaved", lambda models, threads, rounds: [Timing(6.0, 6.0, 6.0, 6.0, 1)] * len(models))
        found = lrsearch.verify(tmp_path / "real", budget={"latency_ms": 5.0, "latency_ratio": 0.5})
    assert missed(found) == ["budget latency_ms"]
    assert {"onnx inputs", "weight_bytes"} <= {c.name for c in found.checks}
    assert found.unchecked["budget latency_ratio"] == found.unchecked["onnx"] == "needs the model, give --study"


def test_without_the_model_damaged_weights_are_one_clear_error(saved):
    (saved / "weights.safetensors").write_bytes((saved / "weights.safetensors").read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"weights\.safetensors: the file must be whole"):
        lrsearch.verify(saved)


@pytest.mark.parametrize(
    ("claim", "message"),
    [({"files": {"../saved/plan.json": "0"}}, "must name files of the folder"),
     ({"inputs": {"shape": [3], "dtype": "load"}}, "the description"), ({"inputs": {"shape": [-1], "dtype": "float32"}}, "the description"),
     ({"inputs": {"shape": [10**12], "dtype": "float32"}}, "the description"), ({"inputs": {"keywords": 3}}, "the description")],
)
def test_a_certificate_that_claims_nonsense_is_one_clear_error(exported, tiny_model, claim, message):
    made = Certificate.load(exported)
    replace(made, origin=replace(made.origin, **claim)).save(exported)
    with pytest.raises(ArtifactError, match=message):
        lrsearch.verify(exported, model=tiny_model)


@pytest.mark.parametrize("given", [True, False], ids=["with the model", "without"])
def test_a_batch_beyond_all_memory_is_not_made(exported, tiny_model, monkeypatch, given):
    monkeypatch.setattr(retime, "batches_of", lambda inputs, size: pytest.fail(f"a batch of {size}") if size > 3 else inputs)
    made = Certificate.load(exported)
    for batch, refused in ((10**9, True), (3, False)):
        config = StudyConfig(latency={"batch": batch})
        replace(made, origin=replace(made.origin, config=config)).save(exported)
        found = lrsearch.verify(exported, model=tiny_model if given else None)
        assert ("inputs of at most 268,435,456 values; got 1000000000 of 432" in found.unchecked.get("latency", "")) == refused


def test_claims_that_are_missing_are_one_clear_error(saved, tiny_model):
    about = json.loads((saved / "plan.json").read_text())
    (saved / "plan.json").write_text(json.dumps({k: v for k, v in about.items() if k != "baseline"}))
    with pytest.raises(ArtifactError, match=r"plan\.json must be as lrsearch wrote it; got KeyError\('baseline'\)"):
        lrsearch.verify(saved, model=tiny_model)


def test_a_metric_that_the_caller_does_not_name_is_not_compared(exported, tiny_model, scoring):
    made = Certificate.load(exported)
    claimed = made.origin.config.model_copy(update={"proxy": ProxyConfig(metric="os:system")})
    replace(made, origin=replace(made.origin, config=claimed)).save(exported)
    found = lrsearch.verify(exported, model=tiny_model, score=scoring)
    assert found.unchecked["metric"] == "needs the metric, give --study"
    assert "metric" not in found.figures
    assert "divergence" in {c.name for c in found.checks}
    again = lrsearch.verify(exported, model=tiny_model, score=scoring, proxy={"metric": "top1"})
    assert "metric" in {c.name for c in again.checks}


@pytest.mark.parametrize("latency", [None, {"batch": 3}], ids=["any batch", "a batch of three"])
def test_onnx_gives_the_same_outputs(saved, tiny_model, scoring, tmp_path, latency):
    origin = Origin(StudyConfig(latency=latency), dense=digest(tiny_model), inputs={"shape": [3, 12, 12], "dtype": "float32"})
    export.write_folder(saved, tmp_path / "real", tiny_model, scoring[0][:2], origin)
    found = lrsearch.verify(tmp_path / "real", model=tiny_model, score=scoring)
    assert found.passed, found.failures
    assert not found.unchecked
    assert found.figures["onnx_examples"] == 60
    assert found.figures["onnx_difference"] < 1e-4


@pytest.fixture
def of_timm(white_fits, tmp_path, monkeypatch):
    """The folder of a compressed model of timm, and the model; its study had other values than timm's random ones."""
    monkeypatch.setattr(export, "onnx_form", lambda *_: b"onnx")
    base, x = timm.create_model("test_resnet", num_classes=4).eval(), torch.randn(20, 3, 32, 32)
    layers = inventory(base, x[:2]).layers
    costs, plan = cost_model(base, layers, x[:2]), Plan({layers[-1].name: LayerPlan(density=0.5)})
    model, examples = compress(base, layers, plan, white_fits(base, layers, plan)), Examples((x, torch.arange(20) % 4), "score")
    reference = reference_of(base, examples, 20)
    found, dense = (reference.compare(m).score(0, False, "") for m in (model, base))
    source = {"timm": "test_resnet", "args": {"num_classes": 4}, "pretrained": True}
    about = {
        "lrsearch": "0.1.0", "model": source, "split": [], "dense": costs.dense.to_dict(), "baseline": dense.to_dict(),
        "cost": costs(plan).to_dict(), "score": found.to_dict(),
    }
    artifact.save(model, plan, tmp_path / "saved", about, Storage(layers))
    origin = Origin(StudyConfig(model=source), dense=digest(base), inputs={"shape": [3, 32, 32], "dtype": "float32"})
    export.write_folder(tmp_path / "saved", tmp_path / "exported", base, x[:2], origin)
    return tmp_path / "exported", model, x


def test_a_model_of_timm_is_loaded_by_name_with_the_values_of_the_file(of_timm):
    folder, model, x = of_timm
    with torch.no_grad():
        assert torch.equal(lrsearch.load(folder)(x), model.eval()(x))


def test_a_model_of_timm_is_counted_without_its_values(of_timm):
    folder, _, _ = of_timm
    found = lrsearch.verify(folder)
    assert found.passed, found.failures
    assert {c.name for c in found.checks} == {"params", "macs", "nonzero_macs", "weight_bytes", "dense params", "dense macs"}
    assert set(found.unchecked) == {"metric", "divergence", "onnx", "dense model"}
    assert set(found.unchecked.values()) == {"needs the model, give --study"}
    (folder / "certificate.json").unlink()  # as a study saves it, with no shape to run the model on
    assert [c.name for c in lrsearch.verify(folder).checks] == ["weight_bytes"]


@pytest.mark.parametrize("inputs", [1, 2])
def test_without_the_model_onnx_has_an_input_for_each_tensor(inputs, monkeypatch, tmp_path):
    monkeypatch.setattr(without_model, "onnx_session", lambda _: SimpleNamespace(get_inputs=lambda: [None] * 2))
    found = Findings()
    without_model._count_inputs(found, tmp_path, {"ids": torch.ones(2, 3)} if inputs == 1 else (torch.ones(2, 3), torch.ones(2, 3)))
    assert [check.passed for check in found.checks] == [inputs == 2]


def test_the_callers_model_stays_in_its_mode(saved, tiny_model, scoring):
    tiny_model.train()
    tiny_model.norm.eval()
    modes = {name: module.training for name, module in tiny_model.named_modules()}
    lrsearch.verify(saved, model=tiny_model, score=scoring)
    assert {name: module.training for name, module in tiny_model.named_modules()} == modes
