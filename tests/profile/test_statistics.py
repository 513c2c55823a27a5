from unittest import mock

import pytest
import torch
from torch import nn

from lrsearch.compress.inventory import inventory
from lrsearch.compress.matricize import input_rows, to_matrix
from lrsearch.profile.sketches import TEMPERATURE, floats
from lrsearch.profile.statistics import collect, takes_gradient
from lrsearch.task.softmax import Classification


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


def damage(statistics, *changes):
    return statistics.damage(torch.stack(changes)).tolist()


def test_damage_is_the_divergence_of_a_small_change():
    """Of the tempered output, in units of that temperature squared; correlations between positions included."""

    class Mean(nn.Module):
        def forward(self, x):
            return x.mean(1)

    model, x = nn.Sequential(nn.Linear(5, 4), nn.GELU(), nn.Linear(4, 3), Mean()), torch.randn(4000, 6, 5)
    statistics = collect(model, inventory(model, x[:2]).layers, [x[:2]], x.split(2))
    with torch.no_grad():
        before = (model(x) / TEMPERATURE).log_softmax(-1)
        for name, module in (("0", model[0]), ("2", model[2])):
            change = 0.01 * torch.randn_like(module.weight)
            module.weight += change
            after = (model(x) / TEMPERATURE).log_softmax(-1)
            module.weight -= change
            expected = TEMPERATURE**2 * (before.exp() * (before - after)).sum(-1).mean()
            torch.testing.assert_close(damage(statistics[name], change[None]), [float(expected)], rtol=0.15, atol=0)


def test_a_change_of_one_example_s_input_counts_as_one_example():
    """A batch's gradient stands for all its examples: one or many to a batch, the damage is the same on average."""
    model, x = nn.Sequential(nn.Linear(3, 4)), torch.randn(6000, 3)
    change = torch.randn(1, 4, 3)
    few, many = (collect(model, inventory(model, x[:2]).layers, [], x.split(n))["0"] for n in (10, 1))
    assert (len(few.sketches), len(many.sketches)) == (600, 6000)
    torch.testing.assert_close(damage(few, change), damage(many, change), rtol=0.2, atol=0)


def test_damage_grows_with_the_square_of_the_change(tiny_model, tiny_data, layers):
    statistics = collect(tiny_model, layers, [], tiny_data[0].split(10))
    for spec in layers:
        change = torch.randn(spec.matrix_shape)
        once, twice = damage(statistics[spec.name], change, 2 * change)
        assert twice == pytest.approx(4 * once, rel=1e-4)
        assert once > 0


def test_the_fit_s_batches_make_no_sketch(tiny_model, tiny_data, layers):
    x = tiny_data[0]
    one, other = (collect(tiny_model, layers, fit, [x[50:]]) for fit in ([x[:50]], [x[:10], x[10:30]]))
    for spec in layers:
        assert torch.equal(one[spec.name].sketches, other[spec.name].sketches)
        assert one[spec.name].sketches.shape == (1, *spec.matrix_shape)


def test_the_seed_draws_the_sketches(tiny_model, tiny_data, layers):
    def sketches(seed):
        return collect(tiny_model, layers, [], [tiny_data[0]], seed=seed)["stem"].sketches

    assert torch.equal(sketches(1), sketches(1))
    assert not torch.equal(sketches(1), sketches(2))


def test_grams_do_not_depend_on_the_batches(tiny_model, tiny_data, layers):
    whole, split = (collect(tiny_model, layers, tiny_data[0].split(n), tiny_data[0].split(n)) for n in (160, 30))
    for spec in layers:
        torch.testing.assert_close(whole[spec.name].gram, split[spec.name].gram, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(whole[spec.name].check, split[spec.name].check, rtol=1e-4, atol=1e-5)


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
    found = collect(tiny_model.requires_grad_(False), layers, [], tiny_data[0].split(80))
    assert all(found[spec.name].sketches.any() for spec in layers)
    assert not any(p.requires_grad for p in tiny_model.parameters())


def test_token_inputs():
    model = nn.Sequential(nn.Embedding(9, 6), nn.Flatten(), nn.Linear(24, 3))
    x = torch.randint(9, (40, 4))
    assert collect(model, inventory(model, x[:2]).layers, x.split(10), x.split(10))["2"].sketches.any()


def test_layers_that_do_not_reach_the_output_do_no_damage():
    class Aside(nn.Module):
        def __init__(self):
            super().__init__()
            self.aside, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x):
            self.aside(x)
            return self.head(x)

    model, x = Aside(), torch.randn(4, 8)
    found = collect(model, inventory(model, x).layers, [x], [x])
    assert damage(found["aside"], torch.randn(1, 8, 8)) == [0]
    assert damage(found["head"], torch.randn(1, 3, 8))[0] > 0


def test_an_output_without_a_gradient_does_no_damage():
    class Detached(nn.Linear):
        def forward(self, x):
            return super().forward(x).detach()

    model, x = nn.Sequential(nn.Linear(8, 8), Detached(8, 3)), torch.randn(4, 8)
    assert damage(collect(model, inventory(model, x).layers, [x], [x])["0"], torch.randn(1, 8, 8)) == [0]


@pytest.mark.parametrize("training", [True, False])
def test_whether_a_model_takes_a_gradient_is_found_out_without_a_trace(tiny_model, layers, tiny_data, left_alone, training):
    model = tiny_model.train(training).requires_grad_(False)
    with left_alone(model):
        assert takes_gradient(model, layers, Classification(), tiny_data[0][:2])
        with mock.patch.object(model, "forward", torch.no_grad()(model.forward)):
            assert not takes_gradient(model, layers, Classification(), tiny_data[0][:2])


def test_sketches_are_gradients_in_bfloat16_and_those_the_model_had_stay(tiny_model, tiny_data, layers):
    x, had = tiny_data[0][:20], torch.ones_like(tiny_model.head.weight)
    tiny_model.eval().head.weight.grad = had
    found, task = collect(tiny_model, layers, [], [x]), Classification()
    outputs = task.run(tiny_model, x)
    pairs = zip(floats(outputs), floats(task.projections(outputs, TEMPERATURE, torch.Generator().manual_seed(0))), strict=True)
    total = sum((t * v.detach()).sum() for t, v in pairs if t.requires_grad)
    weights = [tiny_model.get_parameter(f"{spec.name}.weight") for spec in layers]
    for spec, gradient in zip(layers, torch.autograd.grad(total, weights), strict=True):
        expected = to_matrix(gradient.bfloat16(), spec).reshape(1, *spec.matrix_shape) * (1 / len(x)) ** 0.5
        torch.testing.assert_close(found[spec.name].sketches, expected)
    assert tiny_model.head.weight.grad is had
    assert all(p.grad is None for n, p in tiny_model.named_parameters() if n != "head.weight")
