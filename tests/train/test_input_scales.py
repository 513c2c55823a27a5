import torch
from torch import nn

from lrsearch.compress.inventory import layer_spec
from lrsearch.train.input_scales import input_scales


def scales(module, *batches):
    model = nn.Sequential(module)
    return input_scales(model, [layer_spec(module, "0")], batches)["0"]


def test_the_root_mean_square_of_each_channel_is_that_of_all_its_columns():
    x = torch.ones(4, 2, 5, 5) * torch.tensor([1.0, 3.0])[:, None, None]
    found = scales(nn.Conv2d(2, 3, 2), x)
    assert found.shape == (1, 1, 8)
    assert torch.allclose(found[0, 0] / found[0, 0, 0], torch.tensor([1.0] * 4 + [3.0] * 4))


def test_groups_have_their_own_and_batches_count_together():
    x = torch.tensor([[[1.0], [2.0], [3.0], [4.0]]])
    found = scales(nn.Conv1d(4, 4, 1, groups=2), x, x)
    assert found.shape == (2, 1, 2)
    assert torch.allclose(found.flatten() / found.flatten()[0], torch.tensor([1.0, 2.0, 3.0, 4.0]))


def test_a_linear_layer_has_its_channels_last():
    x = torch.ones(2, 7, 3) * torch.tensor([1.0, 2.0, 0.0])
    found = scales(nn.Linear(3, 2), x)
    assert torch.allclose(found[0, 0] / found[0, 0, 0], torch.tensor([1.0, 2.0, 0.0]))


def test_the_model_is_left_alone(network, layers, tiny_data, left_alone):
    network.train()
    with left_alone(network):
        found = input_scales(network, layers, [tiny_data[0][:10]])
    assert found.keys() == {layer.name for layer in layers}
