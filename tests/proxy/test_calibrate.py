import copy

import pytest
import torch
from torch import nn

from lrsearch.proxy.calibrate import recalibrate, recalibrate_if_better
from lrsearch.proxy.data import Examples
from lrsearch.proxy.evaluate import divergence, predict


def buffers(model):
    return {k: v.clone() for k, v in model.named_buffers()}


def test_statistics_become_those_of_the_data(network, tiny_data):
    x = tiny_data[0][:40]
    momentum = network.norm.momentum
    recalibrate(network, iter([x]))
    channels = network.stem(x).transpose(0, 1).flatten(1)
    assert torch.allclose(network.norm.running_mean, channels.mean(1), atol=1e-5)
    assert torch.allclose(network.norm.running_var, channels.var(1), rtol=1e-4)
    assert (network.norm.momentum, network.norm.training) == (momentum, False)


def test_kept_where_the_held_out_divergence_falls(network, sets):
    recalibrate(network, (x for x, _ in sets["calibration"].batches(60)))
    reference = predict(network, sets["score"], 50)
    shifted = copy.deepcopy(network)
    shifted.norm.running_mean.add_(1.0)
    before = divergence(predict(shifted, sets["score"], 50), reference).mean()
    assert recalibrate_if_better(shifted, sets["calibration"], sets["score"], reference, 60, "cpu")
    assert divergence(predict(shifted, sets["score"], 50), reference).mean() < before / 100


def test_undone_to_the_bit_where_it_does_not_fall(network, sets):
    reference, before = predict(network, sets["score"], 50), buffers(network)
    assert not recalibrate_if_better(network, sets["calibration"], sets["score"], reference, 60, "cpu")
    after = buffers(network)
    assert all(torch.equal(after[k], before[k]) for k in before)
    recalibrate(network, (x for x, _ in sets["calibration"].batches(60)))
    assert not torch.equal(network.norm.running_mean, before["norm.running_mean"])


def test_nothing_to_do_without_batchnorm(sets):
    model = nn.Sequential(nn.Flatten(), nn.Linear(432, 4)).eval()
    assert not recalibrate_if_better(model, sets["calibration"], sets["score"], torch.zeros(50, 4), 60, "cpu")


@pytest.mark.parametrize("examples", [4, 5])
def test_a_last_batch_of_one_example_is_no_obstacle(examples):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).eval()
    data = Examples((torch.randn(examples, 3), torch.zeros(examples)), "calibration")
    recalibrate_if_better(model, data, data, torch.randn(examples, 2), 2, "cpu")
