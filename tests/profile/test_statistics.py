import pytest
import torch
from torch import nn

from lrsearch.compress.inventory import inventory
from lrsearch.compress.matricize import input_rows
from lrsearch.profile.statistics import collect


@pytest.fixture
def layers(tiny_model, tiny_data):
    return inventory(tiny_model, tiny_data[0][:2]).layers


def test_gram_is_the_mean_over_all_examples_and_positions(tiny_model, tiny_data, layers):
    x = tiny_data[0]
    found = collect(tiny_model, layers, x.split(50))
    inputs = {}
    for spec in layers:
        tiny_model.get_submodule(spec.name).register_forward_hook(lambda m, i, _, n=spec.name: inputs.update({n: input_rows(m, i[0])}))
    with torch.no_grad():
        tiny_model(x)
    for spec in layers:
        rows = inputs[spec.name]
        assert found[spec.name].gram.shape == (spec.groups, spec.columns, spec.columns)
        direct = torch.einsum("gni,gnj->gij", rows, rows) / rows.shape[1]
        torch.testing.assert_close(found[spec.name].gram, direct, rtol=1e-4, atol=1e-5)


def test_curvature_is_positive_for_every_output(tiny_model, tiny_data, layers):
    found = collect(tiny_model, layers, tiny_data[0].split(50))
    for spec in layers:
        assert found[spec.name].curvature.shape == (spec.rows,)
        assert (found[spec.name].curvature > 0).all()


def test_curvature_of_the_last_layer_is_the_fisher_information():
    """At the logits it is half of p (1 - p), the diagonal of the softmax's Fisher matrix."""
    model, x = nn.Sequential(nn.Linear(5, 3)), torch.randn(2000, 5)
    p = model(x).softmax(-1)
    found = collect(model, inventory(model, x[:2]).layers, x.split(500))["0"]
    torch.testing.assert_close(found.curvature, (p * (1 - p)).mean(0).detach() / 2, rtol=0.1, atol=0)


def test_statistics_do_not_depend_on_the_batches(tiny_model, tiny_data, layers):
    whole, split = (collect(tiny_model, layers, tiny_data[0].split(n)) for n in (160, 30))
    for spec in layers:
        torch.testing.assert_close(whole[spec.name].gram, split[spec.name].gram, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(whole[spec.name].curvature, split[spec.name].curvature, rtol=1e-3, atol=1e-6)


def test_leaves_the_model_alone(tiny_model, tiny_data, layers):
    tiny_model.train()
    tiny_model.norm.eval()
    state = {k: v.clone() for k, v in tiny_model.state_dict().items()}
    collect(tiny_model, layers, tiny_data[0].split(80))
    assert all(torch.equal(v, state[k]) for k, v in tiny_model.state_dict().items())
    assert tiny_model.head.training
    assert not tiny_model.norm.training
    assert all(p.grad is None for p in tiny_model.parameters())
    assert not any(m._forward_hooks for m in tiny_model.modules())


def test_leaves_the_data_alone(tiny_model, tiny_data, layers):
    batches = [x.clone() for x in tiny_data[0].split(80)]
    collect(tiny_model, layers, batches)
    assert torch.equal(torch.cat(batches), tiny_data[0])
    assert not any(x.requires_grad or x.grad is not None for x in batches)


def test_serves_a_frozen_model(tiny_model, tiny_data, layers):
    found = collect(tiny_model.requires_grad_(False), layers, tiny_data[0].split(80))
    assert all((s.curvature > 0).all() for s in found.values())


def test_token_inputs():
    model = nn.Sequential(nn.Embedding(9, 6), nn.Flatten(), nn.Linear(24, 3))
    x = torch.randint(9, (40, 4))
    found = collect(model, inventory(model, x[:2]).layers, x.split(10))
    assert (found["2"].curvature > 0).all()


def test_layers_that_do_not_reach_the_output_have_no_curvature():
    class Aside(nn.Module):
        def __init__(self):
            super().__init__()
            self.aside, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x):
            self.aside(x)
            return self.head(x)

    model, x = Aside(), torch.randn(4, 8)
    offered = inventory(model, x).layers
    found = collect(model, offered, [x])
    assert found.keys() == {spec.name for spec in offered}
    assert "aside" not in found or not found["aside"].curvature.any()


def test_layers_off_the_path_from_the_input_are_counted_too():
    class Query(nn.Module):
        def __init__(self):
            super().__init__()
            self.query = nn.Parameter(torch.randn(8))
            self.gate, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.head(x * self.gate(self.query.expand(len(x), -1)))

    model, x = Query(), torch.randn(4, 8)
    found = collect(model, inventory(model, x).layers, [x])
    assert (found["gate"].curvature > 0).all()
