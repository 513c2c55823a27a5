"""What a polish refuses, and how it fails: the dense model is always left alone."""

import pytest
import torch
from torch import nn

from lrsearch.compress.inventory import layer_spec
from lrsearch.errors import ModelError
from lrsearch.spec.plan import LayerPlan, Plan
from lrsearch.task.softmax import Tokens
from lrsearch.train.polish import polish


class TokensFirst(nn.Module):
    """``(n, tokens, 6)`` → ``(tokens, n, 6)``, as recurrent layers and older attention have it."""

    def forward(self, x):
        return x.transpose(0, 1)


class Centred(nn.Module):
    """Takes the mean of the batch from every example."""

    def forward(self, x):
        return x - x.mean(0)


class Softmax(nn.Module):
    """Over the batch."""

    def forward(self, x):
        return x.softmax(0)


class Query(nn.Module):
    """A layer whose input is a parameter, without examples."""

    def __init__(self):
        super().__init__()
        self.query, self.gate = nn.Parameter(torch.randn(1, 6)), nn.Linear(6, 6)

    def forward(self, x):
        return x * self.gate(self.query)


PLAN = LayerPlan("svd", (2,), 0.2)
MIXING = {
    "tokens first": (lambda: nn.Sequential(TokensFirst(), nn.Linear(6, 6)), "1"),
    "mean of the batch": (lambda: nn.Sequential(nn.Linear(6, 6), Centred(), nn.Linear(6, 6)), "2"),
    "softmax over the batch": (lambda: nn.Sequential(nn.Linear(6, 6), Softmax(), nn.Linear(6, 6)), "2"),
    "no examples": (lambda: nn.Sequential(nn.Linear(6, 6), Query()), "1.gate"),
    "batchnorm over tokens first": (lambda: nn.Sequential(nn.Linear(6, 6), TokensFirst(), nn.Flatten(0, 1), nn.BatchNorm1d(6)), "3"),
}


@pytest.mark.parametrize("mixing", MIXING)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_model_that_mixes_the_examples_of_a_batch_is_refused(mixing, size, left_alone):
    build, place = MIXING[mixing]
    model, x = build().eval(), torch.randn(8, 4, 6)
    names = [name for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    specs = [layer_spec(model.get_submodule(name), name) for name in names]
    with left_alone(model), pytest.raises(ModelError, match=rf"^{place}: .*examples of a batch apart.*without polish"):
        polish(model, specs, Plan(dict.fromkeys(names, PLAN)), x.split(size))


def test_a_model_that_keeps_them_apart_in_its_own_way_is_not_refused():
    """Tokens join the examples along the first axis, and leave it again."""
    model = nn.Sequential(nn.Flatten(0, 1), nn.Linear(6, 6), nn.Unflatten(0, (-1, 4)), nn.Linear(6, 6)).eval()
    plan = Plan({"1": PLAN, "3": PLAN})
    found = polish(model, [layer_spec(model[i], str(i)) for i in (1, 3)], plan, torch.randn(8, 4, 6).split(2), Tokens())
    assert found.fits.keys() == {"1", "3"}


def test_an_error_of_the_model_is_raised_and_the_dense_model_left_alone(network, layers, plan, tiny_data, left_alone):
    batches = [tiny_data[0][:20], torch.randn(20, 5, 12, 12)]
    with left_alone(network), pytest.raises(RuntimeError, match="channels"):
        polish(network, layers, plan, batches)


class Sometimes(nn.Module):
    """One of its layers is for some examples alone, as in an early exit or a mixture of experts."""

    def __init__(self):
        super().__init__()
        self.stem, self.extra, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        h = self.stem(x)
        return self.head(self.extra(h) if x.max() > 100 else h)


@pytest.mark.parametrize("outlier", [0, 4, 7])
@pytest.mark.parametrize("usual", [0.0, 200.0])
def test_a_model_whose_examples_go_different_ways_is_refused(outlier, usual, left_alone):
    model, x = Sometimes().eval(), torch.randn(8, 6)
    x[:, 0] = usual
    x[outlier, 0] = 200.0 - usual
    names = ["stem", "extra", "head"]
    specs = [layer_spec(model.get_submodule(name), name) for name in names]
    with left_alone(model), pytest.raises(ModelError, match="the same layers, in the same order"):
        polish(model, specs, Plan(dict.fromkeys(names, PLAN)), x.split(1))
