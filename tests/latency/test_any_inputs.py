"""Whatever a model takes and returns, it is surveyed and timed."""

import subprocess
import sys

import onnxruntime
import pytest
import torch
from kinds_of_models import each_kind, kind

from lrsearch.compress.inventory import inventory
from lrsearch.deploy.onnx_export import arrays
from lrsearch.latency import runner
from lrsearch.latency import survey as surveys
from lrsearch.latency.backends import backend
from lrsearch.latency.remote import pack
from lrsearch.latency.survey import Survey, timed
from lrsearch.spec.plan import LayerPlan, Plan
from lrsearch.task.forward import examples_in, tensors

RANK, COLUMNS = LayerPlan("svd", (2,), 0.0), LayerPlan(density=0.5, pattern="column")
OTHER = ("float16", "bfloat16", "float64")


def survey(name: str) -> Survey:
    model, x = kind(name)
    layers = inventory(model, x).layers
    return Survey.of(model, layers, {layer.name: [LayerPlan(), RANK, COLUMNS] for layer in layers}, x, 2)


@pytest.fixture(autouse=True)
def once(monkeypatch):
    monkeypatch.setattr(runner, "MOST_ROUNDS", 1)
    monkeypatch.setattr(runner, "CALLS", 1)
    interleaved = surveys.interleaved
    monkeypatch.setattr(surveys, "interleaved", lambda models, threads, advance, rounds: interleaved(models, threads, advance, rounds=1))


@each_kind("two inputs and nested outputs", "float64")
def test_every_kind_of_model_is_surveyed_and_timed(name):
    found = survey(name)
    assert examples_in(found.sample) == 2
    assert all(len(calls) == 1 for calls in found.calls.values())
    plan = Plan({layer.name: RANK for layer in found.layers})
    for runtime in ("onnxruntime", "torch"):
        conditions = found.conditions(runtime, 1)
        assert conditions.batch == 2
        models = [found.runners(plan, [], conditions), backend(runtime).build(*list(found.models())[-1], 1)]
        assert all(t.ms > 0 for t in timed(models, 1, lambda *_: None, lambda: None))
    assert found.conditions("onnxruntime", 1).dtype == ("float16" if name == "float16" else "float32")
    assert found.conditions("torch", 1).dtype == (name if name in OTHER else "float32")


@pytest.mark.parametrize("name", ["keywords and a dataclass", "two inputs and nested outputs", "bfloat16"])
def test_layers_are_exchanged_in_the_graph_of_every_kind_of_model(name, monkeypatch):
    found = survey(name)
    monkeypatch.setattr(surveys, "onnx_model", lambda *_: pytest.fail("exported"))
    plan = Plan({layer.name: RANK for layer in found.layers})
    session = onnxruntime.InferenceSession(found.onnx(plan, []))
    assert session.run(None, arrays(found.sample))[0].shape == (2, 5)


def test_a_layer_named_as_an_operator_is_exchanged_where_it_is():
    class Named(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.head = torch.nn.Linear(8, 8), torch.nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.linear(torch.nn.functional.linear(x, torch.eye(8)).relu()).relu())

    model, x = Named().eval(), torch.randn(2, 8)
    layers = inventory(model, x).layers
    found = Survey.of(model, layers, {layer.name: [LayerPlan(), RANK] for layer in layers}, x, 2)
    assert sum("linear" in scopes for scopes in found._template._scopes) == 1


def test_the_whole_model_elsewhere_is_given_the_real_inputs(tmp_path):
    found = survey("keywords and a dataclass")
    pack(found, tmp_path, 1, lambda: None)
    kept = runner.arrays_beside(tmp_path / "models" / "0000.onnx")
    assert [x.tolist() for x in kept] == [t.tolist() for t in tensors(found.sample)]
    assert runner.arrays_beside(tmp_path / "models" / "0001.onnx") is None
    code = "import runner; from pathlib import Path; runner.MOST_ROUNDS = runner.ROUNDS = runner.interleaved.__defaults__[1] - 11;" \
        "runner.main(Path('.'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True, env={})
    assert f"{len(found.jobs) + 1} models" in done.stdout


def test_a_model_that_changes_its_input_reads_the_same_at_every_call():
    model, x = kind("changes its input")
    seen, before, threads = [], x.clone(), torch.get_num_threads()
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    try:
        (run,) = backend("torch").build(model, x, threads)
    finally:
        torch.set_num_threads(threads)
    run()
    run()
    assert torch.equal(x, before)
    assert [torch.equal(each, before) for each in seen] == [True] * 3
