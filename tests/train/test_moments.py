import pytest
import torch
from torch import nn

from lrsearch.compress.inventory import layer_spec
from lrsearch.compress.matricize import input_rows, to_matrix
from lrsearch.train.moments import JointMoments, channel_sums, mean_and_variance, near_mean

LAYERS = {
    "linear": (nn.Linear(5, 4), (6, 3, 5)),
    "conv": (nn.Conv2d(4, 6, 3, padding=1, stride=2), (6, 4, 5, 7)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), (6, 4, 5, 7)),
    "conv1d": (nn.Conv1d(4, 6, 3), (6, 4, 9)),
}


@pytest.fixture(params=LAYERS)
def module(request):
    return LAYERS[request.param][0]


@pytest.fixture
def inputs(module):
    """What the layer sees in the dense network, and in the compressed one: like it, but not the same."""
    shape = next(shape for layer, shape in LAYERS.values() if layer is module)
    dense = torch.randn(shape) + 0.5
    return dense, 0.8 * dense + 0.3 * torch.randn(shape) - 0.2


@pytest.fixture
def moments(module, inputs):
    return summed(module, *inputs)


def summed(module, dense, ours, near=None):
    found = JointMoments.zero(layer_spec(module, "layer"), torch.device("cpu"), near)
    found.add(module, dense, ours)
    return found


def rows_of(module, inputs):
    """Dense and compressed inputs as rows, float64, ``(groups, positions, columns)``."""
    return [input_rows(module, x).double() for x in inputs]


def close(found, expected):
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-4)


def test_they_are_the_means_of_outer_products(module, inputs, moments):
    old, new = rows_of(module, inputs)
    gram, cross = moments.normalised()
    assert moments.count == new.shape[1]
    close(gram, new.mT @ new / new.shape[1])
    close(cross, old.mT @ new / new.shape[1])


@pytest.mark.parametrize("offset", [0, 1e5])
def test_beside_a_point_near_the_means_they_are_covariances(module, inputs, offset):
    """In float32 a spread of 1 is nothing in the square of such an offset."""
    inputs = [offset + x for x in inputs]
    if getattr(module, "padding", (0,)) != (0,) and offset:
        pytest.skip("the zeros of a padded border are as far from the mean as the offset, so that the spread is no small one")
    old, new = (rows - rows.mean(1, keepdim=True) for rows in rows_of(module, inputs))
    gram, cross = summed(module, *inputs, near_mean(module, inputs[0][:2])).normalised()
    torch.testing.assert_close(gram, (new.mT @ new / new.shape[1]).float(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(cross, (old.mT @ new / new.shape[1]).float(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("near", [False, True])
def test_what_is_missing_is_the_mean_difference_of_the_outputs(module, inputs, near):
    """Whatever weight is used on the compressed network's inputs."""
    moments = summed(module, *inputs, near_mean(module, inputs[0]) if near else None)
    spec = layer_spec(module, "layer")
    weight = to_matrix(module.weight.detach(), spec)
    effective = weight + 0.1 * torch.randn_like(weight)
    old, new = rows_of(module, inputs)
    difference = (old @ weight.double().mT - new @ effective.double().mT).mean(1).flatten()
    assert moments.missing(weight, effective).shape == (spec.rows,)
    close(moments.missing(weight, effective), difference)


def test_batches_add_up_in_either_way(module, inputs, moments):
    halves = [summed(module, *(x[part] for x in inputs)) for part in (slice(0, 2), slice(2, None))]
    one_by_one = summed(module, *(x[:2] for x in inputs))
    one_by_one.add(module, *(x[2:] for x in inputs))
    for found in (halves[0] + halves[1], one_by_one):
        assert found.count == moments.count
        for name in ("gram", "cross", "mean", "dense_mean"):
            torch.testing.assert_close(getattr(found, name), getattr(moments, name), rtol=1e-4, atol=1e-3)
    assert halves[0].count < moments.count


def test_of_nothing_they_are_zero(module):
    empty = JointMoments.zero(layer_spec(module, "layer"), torch.device("cpu"))
    assert not any(t.any() for t in empty.normalised())


def test_other_precisions_are_summed_in_float32():
    module, x = nn.Linear(5, 4).to(torch.bfloat16), torch.randn(6, 5).to(torch.bfloat16)
    found = summed(module, x, 2 * x)
    assert found.gram.dtype == found.cross.dtype == torch.float32
    close(found.cross[0], 2 * x.double().T @ x.double())


@pytest.mark.parametrize("shape", [(9, 3), (9, 3, 4), (9, 3, 4, 5)], ids=str)
def test_channel_sums_of_batches_give_mean_and_variance(shape):
    x = 100 + 0.1 * torch.randn(shape)
    mean, variance = mean_and_variance(channel_sums(x[:2]) + channel_sums(x[2:]))
    channels = x.double().transpose(0, 1).flatten(1)
    close(mean, channels.mean(1))
    torch.testing.assert_close(variance, channels.var(1, correction=0).float(), rtol=1e-3, atol=0)
    assert mean.dtype == variance.dtype == torch.float32


def test_a_constant_channel_has_no_negative_variance():
    sums = torch.tensor([[3.0, 3.0], [3.0, 6.0], [3.0 - 1e-9, 12.0]], dtype=torch.float64)  # as rounding may leave them
    assert (mean_and_variance(sums)[1] >= 0).all()
