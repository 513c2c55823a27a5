import pytest
import torch
from torch import nn

from lrsearch.compress.inventory import inventory
from lrsearch.profile.importance import EVEN, importance, importances
from lrsearch.profile.statistics import collect


def test_an_output_is_as_important_as_the_network_s_output_depends_on_it():
    model, x = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 4)), torch.randn(4000, 5)
    with torch.no_grad():
        model[1].weight *= torch.tensor([0.1, 1.0, 0.0]) / model[1].weight.norm(dim=0)
    statistics = collect(model, inventory(model, x[:2]).layers, [x], x.split(10))["0"]
    found = importance(statistics.gram, statistics.sketches)
    shares = torch.tensor([0.01, 1.0, 0.0]) / 1.01
    torch.testing.assert_close(found, (EVEN + (1 - EVEN) * 3 * shares).view(1, 3, 1), rtol=0.05, atol=0.06)


def test_every_sketch_counts_the_same_for_importance():
    sketches = torch.tensor([[[[3.0, 4.0], [0.0, 0.0]]], [[[0.0, 0.0], [300.0, 400.0]]]])
    assert importance(torch.eye(2)[None], sketches).flatten().tolist() == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize("count", [0, 2])
def test_without_a_gradient_all_outputs_are_of_equal_importance(count):
    assert torch.equal(importance(torch.eye(3).expand(2, 3, 3), torch.zeros(count, 2, 4, 3)), torch.ones(2, 4, 1))


def test_batches_of_any_shape_serve(tiny_model, tiny_data, layers, left_alone):
    with left_alone(tiny_model):
        found = importances(tiny_model, layers, [tiny_data[0][:50], tiny_data[0][:70, :, :8, :8]])
    for spec in layers:
        assert found[spec.name].shape == (*spec.matrix_shape[:2], 1)
        assert float(found[spec.name].mean()) == pytest.approx(1)
        assert float(found[spec.name].min()) >= EVEN


def test_importances_are_of_all_examples_one_at_a_time(tiny_model, tiny_data, layers):
    x = tiny_data[0][:40]
    statistics = collect(tiny_model, layers, [x], x.split(1))
    found = importances(tiny_model, layers, [x[:25], x[25:]])
    for spec in layers:
        one = statistics[spec.name]
        torch.testing.assert_close(found[spec.name], importance(one.gram, one.sketches), rtol=1e-3, atol=1e-3)
