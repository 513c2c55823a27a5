"""A student computes with the weights of its fits, in the shapes and types that the model has."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from lrsearch.compress.fit import Decomposition
from lrsearch.compress.inventory import layer_spec
from lrsearch.compress.matricize import to_matrix
from lrsearch.spec.plan import LayerPlan
from lrsearch.train.student import Student


def whole(module, name):
    """Everything of a layer is kept, in float32 as the fits of a profile are."""
    spec = layer_spec(module, name)
    matrix = to_matrix(module.weight.detach().float(), spec)
    return Decomposition(spec, LayerPlan(), (), matrix, torch.ones_like(matrix, dtype=torch.bool))


@pytest.fixture(params=["linear", "transposed"])
def network(request):
    torch.manual_seed(0)
    layer, x = (nn.Linear(6, 4), torch.randn(5, 6)) if request.param == "linear" else (nn.ConvTranspose2d(2, 4, 3), torch.randn(5, 2, 3, 3))
    return nn.Sequential(layer, nn.ReLU()), x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_step_moves_the_model_from_where_the_dense_one_is(network, dtype):
    model, x = network
    model, x = model.to(dtype), x.to(dtype)
    expected, seen = model(x).detach(), []

    def loss(outputs):
        seen.append(outputs.detach())
        return outputs.float().square().mean()

    student = Student(model, {"0": whole(model[0], "0")}, free=False, clip=10.0)
    first = student.step(x, loss, 0.1, "test")
    second = student.step(x, loss, 0.1, "test")
    torch.testing.assert_close(seen[0], expected)
    assert seen[0].dtype == dtype
    assert second < first
    student.write()
    assert model[0].weight.dtype == dtype
    with torch.no_grad():
        assert float(model(x).float().square().mean()) < second


def test_autocast_computes_in_its_type_and_trains_in_float32(network):
    model, x = network
    seen = []

    def loss(outputs):
        seen.append(outputs.dtype)
        return outputs.float().square().mean()

    student = Student(model, {"0": whole(model[0], "0")}, free=False, clip=10.0, dtype="bfloat16")
    first = student.step(x, loss, 0.1, "test")
    second = student.step(x, loss, 0.1, "test")
    assert seen == [torch.bfloat16] * 2
    assert second < first
    assert {p.dtype for p in student.parameters.values()} == {torch.float32}
    assert student.write()["0"].sparse.dtype == model[0].weight.dtype == torch.float32


def test_a_state_goes_on_in_a_student_that_began_with_other_values(network):
    """Adam's steps are in units of the sizes that the first one began with."""
    model, x = network
    fit = whole(model[0], "0")

    def steps(student, count):
        for _ in range(count):
            student.step(x, lambda outputs: outputs.float().square().mean(), 0.01, "test")
        return student

    first = steps(Student(model, {"0": fit}, free=False, clip=10.0), 2)
    state = first.state_dict()
    other = Student(model, {"0": replace(fit, sparse=3 * fit.sparse)}, free=False, clip=10.0)
    other.load_state_dict(state)
    expected, found = steps(first, 2).write()["0"].sparse, steps(other, 2).write()["0"].sparse
    assert torch.equal(found, expected)
