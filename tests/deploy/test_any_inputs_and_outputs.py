"""Whatever a model takes and returns, it is counted, deployed with equal outputs, and exported for any batch."""

import onnxruntime
import pytest
import torch
from kinds_of_models import KINDS, Found, Tokens, Two, each_kind, kind

from lrsearch.compress.apply import compress
from lrsearch.compress.inventory import inventory
from lrsearch.compress.modules import CompressedLayer
from lrsearch.deploy.channel_flow import feeds
from lrsearch.deploy.deployed import deployed
from lrsearch.deploy.fold_batchnorm import fold_batchnorm
from lrsearch.deploy.onnx_export import PRECISION, arrays, exported
from lrsearch.errors import ModelError
from lrsearch.latency.micro_models import randomised
from lrsearch.measure.count import cost_model, recount
from lrsearch.measure.peak import peak_bytes
from lrsearch.spec.plan import LayerPlan, Plan
from lrsearch.task.forward import batches_of, copied, forward, inference, output_tensors, tensors

TOLERANCE = {"float16": 1e-2, "bfloat16": 4e-2, "autocast": 4e-2}
every_kind = pytest.mark.parametrize("name", KINDS)


def outputs(model, x):
    with inference(model):
        return {name: t.double() for name, t in output_tensors(forward(model, x)).items()}


def compressed(model, x):
    """``model`` with random low-rank and column-sparse layers, and the plan."""
    layers = inventory(model, x).layers
    choices = [LayerPlan("svd", (2,), 0.0), LayerPlan(density=0.5, pattern="column"), LayerPlan("svd", (2,), 0.25, "column")]
    plan = Plan({layer.name: choice for layer, choice in zip(layers, choices, strict=False)})
    small = compress(model, layers, plan)
    for layer in small.modules():
        if isinstance(layer, CompressedLayer):
            randomised(layer)
    return small.eval(), plan


@every_kind
def test_costs_are_those_of_a_recount(name):
    model, x = kind(name)
    small, plan = compressed(model, x)
    costs = cost_model(model, inventory(model, x).layers, x)
    for found, each in ((recount(model, x), costs.dense), (recount(small, x), costs(plan))):
        assert (found.params, found.macs, found.nonzero_macs) == (each.params, each.macs, each.nonzero_macs)
    assert costs.dense.macs > 0


@every_kind
def test_peaks_hold_the_inputs_and_the_outputs(name):
    model, x = kind(name)
    before = copied(x)
    assert peak_bytes(model, x) >= sum(t.nbytes for t in (*tensors(x), *output_tensors(forward(model, x)).values()))
    assert all(map(torch.equal, tensors(x), tensors(before)))


@every_kind
def test_deployed_models_have_equal_outputs(name, left_alone):
    model, x = kind(name)
    small, _ = compressed(model, x)
    for each in (model, small):
        with left_alone(each):
            made = deployed(each, x)
        assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in made.modules())
        expected = outputs(each, x)
        assert outputs(made, x).keys() == expected.keys()
        for output, y in outputs(made, x).items():
            torch.testing.assert_close(y, expected[output], rtol=0, atol=TOLERANCE.get(name, 1e-4) * float(expected[output].abs().max()))


@each_kind("keywords and a dataclass", "two inputs and nested outputs", "bfloat16")
def test_exported_models_compute_the_same_for_any_batch(name):
    model, x = kind(name)
    small = deployed(compressed(model, x)[0], x)
    session = onnxruntime.InferenceSession(exported(small, x, dynamic=True))
    assert [i.name for i in session.get_inputs()] == list(arrays(x))
    for size in (1, 3, 7):
        given = batches_of(x, size)
        expected = outputs(small, given)
        assert [o.name for o in session.get_outputs()] == list(expected)
        for values, y in zip(session.run(None, arrays(given)), expected.values(), strict=True):
            atol = TOLERANCE.get(name, 1e-4) * float(y.abs().max())
            torch.testing.assert_close(torch.from_numpy(values).double(), y, rtol=0, atol=atol)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["float16", "bfloat16", "autocast", "tokens"])
def test_exported_models_note_the_precision_that_torch_computes_in(name):
    precision = {"autocast": "bfloat16", "tokens": "float32"}.get(name, name)
    session = onnxruntime.InferenceSession(exported(*kind(name)))
    assert session.get_modelmeta().custom_metadata_map[PRECISION] == precision
    assert not any("bfloat16" in each.type for each in (*session.get_inputs(), *session.get_outputs()))


@pytest.mark.slow
def test_names_are_those_of_the_arguments_and_of_the_fields():
    session = onnxruntime.InferenceSession(exported(*kind("keywords and a dataclass")))
    assert [i.name for i in session.get_inputs()] == ["input_ids", "attention_mask"]
    assert [o.name for o in session.get_outputs()] == ["logits", "hidden_0"]
    session = onnxruntime.InferenceSession(exported(*kind("two inputs and nested outputs")))
    assert [i.name for i in session.get_inputs()] == ["input_0", "input_1"]
    assert [o.name for o in session.get_outputs()] == ["output_0", "output_1.features_0"]


class Shown(torch.nn.Module):
    """A convolution whose output is normalised, and also returned in a dataclass; a layer that feeds another, returned too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4)
        self.a, self.b = torch.nn.Linear(4, 32), torch.nn.Linear(32, 5)

    def forward(self, x):
        h = self.conv(x)
        k = self.a(self.norm(h).mean((2, 3)))
        return Found(self.b(k), hidden=(h, k))


def test_what_is_returned_in_a_dataclass_is_read_by_others():
    torch.manual_seed(0)
    model, x = Shown().eval(), torch.randn(2, 3, 4, 4)
    torch.nn.init.normal_(model.norm.running_mean)
    assert fold_batchnorm(model, x) == []
    assert feeds(model, x) == {}


def test_layers_called_by_keyword_are_folded_and_fed():
    model, x = kind("layers called by keyword")
    assert {name: feed.producer for name, feed in feeds(model, x).items()} == {"head": "narrow"}
    assert fold_batchnorm(model, x) == ["norm"]


def test_models_may_ask_deployed_layers_for_their_weight():
    class Asking(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Linear(8, 16), torch.nn.Linear(16, 5)

        def forward(self, x):
            return self.b(self.a(x.to(self.a.weight.dtype)).relu()) @ self.b.weight[:, :5].t()

    model, x = Asking().eval(), torch.randn(4, 8)
    layers, plan = inventory(model, x).layers, Plan({"a": LayerPlan("svd", (2,), 0.0), "b": LayerPlan("svd", (2,), 0.0)})
    small = compress(model, layers, plan)
    for layer in (small.a, small.b):
        randomised(layer)
    made = deployed(small, x)
    assert isinstance(made.a, torch.nn.Sequential)
    torch.testing.assert_close(outputs(made, x), outputs(small, x))
    session = onnxruntime.InferenceSession(exported(made, x, dynamic=True))
    y = torch.from_numpy(session.run(None, arrays(x[:3]))[0])
    torch.testing.assert_close(y, outputs(small, x[:3])["output"].float(), rtol=1e-4, atol=1e-5)


def test_a_module_that_reads_two_tensors_by_keyword_feeds_nothing():
    class Gate(torch.nn.Module):
        def forward(self, x, gate):
            return x * gate

    class Gated(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.g, self.gate, self.b = torch.nn.Linear(4, 32), torch.nn.Linear(4, 32), Gate(), torch.nn.Linear(32, 5)

        def forward(self, x):
            return self.b(self.gate(x=self.a(x), gate=self.g(x)))

    assert feeds(Gated().eval(), torch.randn(2, 4)) == {}


def test_values_that_decide_are_refused_for_peaks_in_one_line():
    class Deciding(Tokens):
        def forward(self, input_ids):
            return super().forward(input_ids + 1 if input_ids.sum() < 0 else input_ids)

    with pytest.raises(ModelError, match="must not depend on the values"):
        peak_bytes(Deciding().eval(), torch.randint(11, (2, 6)))


def test_a_model_whose_arguments_are_given_by_name_in_another_order():
    model, (image, vector) = kind("two inputs and nested outputs")
    x = {"vector": vector, "image": image}
    session = onnxruntime.InferenceSession(exported(model, x, dynamic=True))
    y = session.run(["output_0"], {"vector": vector[:3].numpy(), "image": image[:3].numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(y), Two.forward(model, image[:3], vector[:3])[0].detach(), rtol=1e-4, atol=1e-5)
