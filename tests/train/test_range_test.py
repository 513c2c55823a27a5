"""The learning rate is found by short finetunes; a longer one takes a larger rate than was best for them."""

import math

import pytest
import torch

from lrsearch.spec.config import FinetuneConfig
from lrsearch.spec.recover import RecoverConfig
from lrsearch.spec.training import Recipe
from lrsearch.train.best import typical
from lrsearch.train.range_test import FACTOR, FRUITLESS, MOST_RATES, STEPS, find_rate, range_test, short

BEFORE = torch.full((100,), 2.0)


def valley(bottom):
    """Rate → what is left after a finetune at it."""
    return lambda rate: BEFORE / 2 + 0.1 * math.log10(rate / bottom) ** 2


@pytest.mark.parametrize(("bottom", "tried"), [(1e-3, 3), (3e-3, 3), (1e-4, 5), (1e-2, 4)])
def test_it_goes_on_until_both_neighbours_are_worse(bottom, tried):
    found = find_rate(valley(bottom), BEFORE, 1e-3)
    assert found.rate == found.nearest == pytest.approx(bottom, rel=0.1)
    assert len(found.tried) == tried


def test_it_ends_somewhere():
    found = find_rate(valley(1.0), BEFORE, 1e-3)
    assert len(found.tried) == MOST_RATES
    assert found.rate == max(found.tried)


@pytest.mark.parametrize(("longer", "times"), [(0.5, 1), (1, 1), (4, 2), (9, 3), (100, FACTOR)])
def test_a_longer_finetune_takes_a_larger_rate_up_to_the_next_one(longer, times):
    found = find_rate(valley(1e-3), BEFORE, 1e-3, longer)
    assert found.rate == pytest.approx(times * found.nearest, rel=0.05)


def test_few_examples_that_lose_much_do_not_decide():
    before = torch.cat([torch.full((500,), 0.04), torch.full((12,), 3.0)])
    after = torch.cat([torch.full((500,), 0.03), torch.full((12,), 3.6)])
    assert after.mean() > before.mean()
    assert typical(after) < typical(before)
    found = find_rate(lambda rate: after * (1 + math.log10(rate / 3e-3) ** 2), before, 3e-3)
    assert (found.nearest, len(found.tried)) == (3e-3, 3)  # a larger one was tried too: it saw a gain
    far = {1e-3: [0.01, 3.0], 3e-3: [0.02, 2.0], 9.5e-3: [0.03, 2.5]}  # the mean says the second, the typical example the first
    both = find_rate(lambda rate: torch.tensor(far.get(rate, [9.0, 9.0])), torch.tensor([0.1, 4.0]), 3e-3)
    assert (both.nearest, both.gains) == (3e-3, True)
    assert typical(torch.tensor([0.3, 0.3])) == pytest.approx(0.3)
    assert typical(torch.tensor([-1e-9, torch.inf])) == math.inf


def test_rates_that_fail_are_never_taken():
    def finetuned(rate):
        return BEFORE / 2 / rate**0.01 if rate < 2e-3 else torch.full_like(BEFORE, torch.inf)

    found = find_rate(finetuned, BEFORE, 1e-2)
    assert found.rate == 1e-3
    assert find_rate(finetuned, BEFORE, 1e-2, longer=100).rate == 1e-3
    assert "2 (2) before" in str(found)
    assert "inf (inf) at 0.01" in str(found)


@pytest.mark.parametrize(("left", "times"), [(2.0, FACTOR), (5.0, 1)])
def test_a_longer_finetune_stays_below_a_rate_that_does_harm(left, times):
    found = find_rate(lambda rate: BEFORE / 2 if rate == 1e-3 else BEFORE * left / 2 if rate > 1e-3 else BEFORE * 0.9, BEFORE, 1e-3, 100)
    assert found.rate == pytest.approx(times * 1e-3, rel=0.05)


def test_rates_get_smaller_until_one_gains_even_where_a_smaller_one_was_worse():
    """As of an EfficientNet-Lite0 on 450 images: 0.281 before, 0.405 at 0.003, 0.493 at 0.00095."""
    left = {3e-3: 0.405, 9.5e-4: 0.493}
    found = find_rate(lambda rate: torch.full((9,), left.get(rate, 0.2)), torch.full((9,), 0.281), 3e-3)
    assert found.nearest < min(left)
    assert found.gains


def test_where_the_first_does_harm_smaller_ones_alone_are_tried():
    found = find_rate(lambda rate: BEFORE * (rate / 2e-4) ** 0.5, BEFORE, 1e-3)
    assert "gained anything" not in str(found)
    assert str(find_rate(lambda rate: BEFORE * 2, BEFORE, 1e-3)).endswith("; none of them gained anything, and longer ones may not either")
    assert max(found.tried) == 1e-3
    assert found.rate == min(found.tried)


class Finetune:
    """A training that leaves twice of what it began with, but at some recipes a share of it."""

    config = FinetuneConfig(steps=30, optimizer="adam")

    def __init__(self, recipe, shares):
        self.best, self.left = self, BEFORE * shares.get(recipe[:2], 2)

    def run(self, steps):
        self.last = self.left if steps else BEFORE


@pytest.mark.parametrize(("shares", "recipe", "finetunes"), [
    ({("features", 3e-3): 0.9}, ("features", 3e-3), 3),
    ({("both", 3e-4): 0.9}, ("both", 3e-4), FRUITLESS + 3),  # begins a decade lower
    ({("features", 3e-5): 0.99, ("both", 3e-4): 0.7}, ("both", 3e-4), FRUITLESS + 3),  # a little is gained at any tiny rate
    ({("features", 3e-5): 0.97, ("both", 3e-4): 0.99}, ("features", 3e-5), 2 * FRUITLESS),
    ({("outputs", 3e-4): 0.5}, ("features", 3e-5), 2 * FRUITLESS),  # which was not offered; all others do harm
])
def test_a_loss_that_does_not_clearly_gain_competes_with_the_next(shares, recipe, finetunes):
    begun = []
    found = range_test(lambda r: begun.append(r) or Finetune(r, shares), ("features", "both"), 30)
    assert found.recipe == Recipe(*recipe)
    assert len(begun) == 1 + finetunes
    other = "both" if recipe[0] == "features" else "features"
    assert found.others == (() if finetunes == 3 else (other,))
    assert (f"on loss: {recipe[0]}, as {other} left more: " in str(found)) == (finetunes > 3)


def test_a_short_finetune_is_as_the_long_one_but_for_its_length_and_batchnorm():
    finetune = FinetuneConfig(steps=400, rungs=3, batch=7, loss="outputs", optimizer="sgd", batchnorm="free", stages=("a*",))
    for config in (finetune, RecoverConfig(**finetune.model_dump(include={"batch", "loss", "optimizer", "batchnorm", "stages"}))):
        found = short(config)
        assert (found.steps, found.ends) == (STEPS, (STEPS,))
        assert found.batchnorm == "frozen"
        assert found.model_copy(update={"steps": 400, "rungs": 3, "batchnorm": "free"}) == finetune
    assert short(FinetuneConfig(steps=4)).steps == 4


@pytest.mark.parametrize(("steps", "rungs", "longest"), [(300, 1, 300), (300, 2, 150), (150, 3, 75), (0, 1, 0)])
def test_a_rate_falls_once_in_each_rung(steps, rungs, longest):
    assert FinetuneConfig(steps=steps, rungs=rungs).longest == longest


@pytest.mark.parametrize(("epochs", "gradual", "longest"), [(24, None, 12), (8, None, 4), (3, None, 2), (1, None, 1), (24, {}, 24)])
def test_a_rate_falls_once_in_each_cycle_of_a_recovery(epochs, gradual, longest):
    assert RecoverConfig(epochs=epochs, gradual=gradual).longest == longest


def test_a_divergence_that_rounding_made_negative_is_none():
    """Where nothing was lost nothing can be gained."""
    found = find_rate(lambda rate: torch.full((4,), 0.05), torch.full((4,), -1e-8), 1e-3)
    assert not found.gains
    assert len(found.tried) == 3
