"""Inputs that are always zero are left out of products with a Gram matrix, and nothing else changes."""

import pytest
import torch
from torch import nn

from lrsearch.compress import live_gram
from lrsearch.compress.fit import FitProblem
from lrsearch.compress.inventory import layer_spec
from lrsearch.compress.live_gram import LiveGram
from lrsearch.compress.matricize import gram, input_rows, to_matrix
from lrsearch.spec.plan import LayerPlan


@pytest.fixture
def conv():
    """A convolution whose images are one pixel: eight of its nine taps see padding alone."""
    torch.manual_seed(0)
    module = nn.Conv2d(6, 8, 3, padding=1)
    rows = input_rows(module, torch.randn(64, 6, 1, 1))
    return layer_spec(module, "conv"), to_matrix(module.weight.detach(), layer_spec(module, "conv")), gram(rows) / 64


def test_products_are_those_of_the_whole_matrix(conv):
    _, weight, found = conv
    damped = found + 0.01 * torch.eye(54)
    live = LiveGram(damped)
    assert live.core.shape == (1, 6, 6)
    torch.testing.assert_close(live.times(weight), weight @ damped)


def test_inputs_that_never_occur_with_others_keep_their_own_energy(conv):
    _, weight, _ = conv
    gram = torch.diag(torch.rand(54) * 5 + 0.01)[None]
    gram[:, :4, :4] += 0.1
    live = LiveGram(gram)
    assert live.core.shape == (1, 4, 4)
    torch.testing.assert_close(live.times(weight), weight @ gram)


@pytest.mark.parametrize("shape", [(1, 5, 5), (2, 5, 5)], ids=["whole", "groups"])
def test_a_matrix_without_such_inputs_is_taken_as_it_is(shape):
    whole = torch.ones(shape) + torch.eye(5)
    assert LiveGram(whole).core is whole


@pytest.mark.parametrize("plan", [
    LayerPlan(density=0.3), LayerPlan("svd", (2,)), LayerPlan("tucker2", (3, 3), 0.2), LayerPlan(density=0.5, pattern="column"),
], ids=str)
def test_a_fit_errs_as_little(conv, plan, monkeypatch):
    layer, weight, found = conv
    problem = FitProblem(layer, weight, found)
    short = problem.error(problem.fit(plan).effective())
    monkeypatch.setattr(live_gram, "_live", lambda _: None)
    whole = FitProblem(layer, weight, found)
    assert short == pytest.approx(whole.error(whole.fit(plan).effective()), rel=0.02)
