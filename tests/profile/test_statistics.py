import pytest
import torch
from torch import nn

from lrsearch.compress.inventory import inventory
from lrsearch.compress.matricize import input_rows
from lrsearch.profile.statistics import collect


def grams_by_hand(model, layers, x):
    """Mean of outer products of every layer's inputs, from one pass over all of them."""
    inputs, found = {}, {}
    for spec in layers:
        model.get_submodule(spec.name).register_forward_hook(lambda m, i, _, n=spec.name: inputs.update({n: input_rows(m, i[0])}))
    with torch.no_grad():
        model(x)
    for name, rows in inputs.items():
        found[name] = torch.einsum("gni,gnj->gij", rows, rows) / rows.shape[1]
    return found


def test_grams_are_means_over_all_examples_and_positions_of_their_own_batches(tiny_model, tiny_data, layers):
    x = tiny_data[0]
    found = collect(tiny_model, layers, x[:100].split(30), x[100:].split(25))
    expected = {"gram": grams_by_hand(tiny_model, layers, x[:100]), "check": grams_by_hand(tiny_model, layers, x[100:])}
    for spec in layers:
        for part, grams in expected.items():
            gram = getattr(found[spec.name], part)
            assert gram.shape == (spec.groups, spec.columns, spec.columns)
            torch.testing.assert_close(gram, grams[spec.name], rtol=1e-4, atol=1e-5)


def test_curvature_does_not_see_the_check_batches(tiny_model, tiny_data, layers):
    x = tiny_data[0]
    one, other = (collect(tiny_model, layers, [x[:50]], check) for check in ([x[50:]], [x[50:60], x[60:90]]))
    assert all(torch.equal(one[spec.name].curvature, other[spec.name].curvature) for spec in layers)
    assert not torch.allclose(one["head"].check, other["head"].check)


def test_curvature_is_positive_for_every_output(tiny_model, tiny_data, layers):
    found = collect(tiny_model, layers, tiny_data[0].split(50), [])
    for spec in layers:
        assert found[spec.name].curvature.shape == (spec.rows,)
        assert (found[spec.name].curvature > 0).all()


@pytest.mark.parametrize("positions", [1, 3])
def test_curvature_of_the_last_layer_is_the_fisher_information(positions):
    """At the logits it is half of p (1 - p), the diagonal of the softmax's Fisher matrix; it adds up over positions."""

    class Sum(nn.Module):
        def forward(self, x):
            return x.sum(1)

    model, x = nn.Sequential(nn.Linear(5, 3), Sum()), torch.randn(2000, positions, 5)
    p = model(x).softmax(-1)
    found = collect(model, inventory(model, x[:2]).layers, x.split(500), [])["0"]
    torch.testing.assert_close(found.curvature, positions * (p * (1 - p)).mean(0).detach() / 2, rtol=0.1, atol=0)


def test_curvature_has_the_outputs_of_a_convolution_in_their_order():
    """Of two channels, only the second reaches the output."""
    model = nn.Sequential(nn.Conv1d(2, 2, 1), nn.Flatten(), nn.Linear(8, 3))
    with torch.no_grad():
        model[2].weight[:, :4] = 0
    x = torch.randn(20, 2, 4)
    curvature = collect(model, inventory(model, x[:2]).layers, [x], [])["0"].curvature
    assert curvature[0] == 0 < curvature[1]


def test_the_seed_draws_the_labels_of_the_curvature(tiny_model, tiny_data, layers):
    def curvature(seed):
        return collect(tiny_model, layers, [tiny_data[0]], [], seed=seed)["stem"].curvature

    assert torch.equal(curvature(1), curvature(1))
    assert not torch.equal(curvature(1), curvature(2))


def test_statistics_do_not_depend_on_the_batches(tiny_model, tiny_data, layers):
    whole, split = (collect(tiny_model, layers, tiny_data[0].split(n), tiny_data[0].split(n)) for n in (160, 30))
    for spec in layers:
        torch.testing.assert_close(whole[spec.name].gram, split[spec.name].gram, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(whole[spec.name].check, split[spec.name].check, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(whole[spec.name].curvature, split[spec.name].curvature, rtol=1e-3, atol=1e-6)


def test_leaves_the_model_alone(tiny_model, tiny_data, layers, left_alone):
    tiny_model.train()
    tiny_model.norm.eval()
    with left_alone(tiny_model):
        collect(tiny_model, layers, tiny_data[0].split(80), tiny_data[0].split(80))


def test_leaves_the_data_alone(tiny_model, tiny_data, layers):
    batches = [x.clone() for x in tiny_data[0].split(80)]
    collect(tiny_model, layers, batches, batches)
    assert torch.equal(torch.cat(batches), tiny_data[0])
    assert not any(x.requires_grad or x.grad is not None for x in batches)


def test_a_step_is_told_for_every_batch(tiny_model, tiny_data, layers):
    steps = []
    collect(tiny_model, layers, tiny_data[0].split(80), tiny_data[0].split(40), advance=lambda: steps.append(1))
    assert len(steps) == 2 + 4


def test_serves_a_frozen_model(tiny_model, tiny_data, layers):
    found = collect(tiny_model.requires_grad_(False), layers, tiny_data[0].split(80), [])
    assert all((s.curvature > 0).all() for s in found.values())


def test_token_inputs():
    model = nn.Sequential(nn.Embedding(9, 6), nn.Flatten(), nn.Linear(24, 3))
    x = torch.randint(9, (40, 4))
    found = collect(model, inventory(model, x[:2]).layers, x.split(10), x.split(10))
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
    found = collect(model, offered, [x], [x])
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
    found = collect(model, inventory(model, x).layers, [x], [x])
    assert (found["gate"].curvature > 0).all()
