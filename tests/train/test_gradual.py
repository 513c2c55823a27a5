from itertools import pairwise

import pytest
import torch

from lrsearch.compress.fit import FitProblem
from lrsearch.compress.sparsify import contract
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.pattern import pattern
from lrsearch.spec.plan import LayerPlan
from lrsearch.train.gradual import Gradual

LAYER = LayerSpec("a", "linear", (16, 32))


def fit(plan):
    weight = torch.randn(1, 16, 32)
    return FitProblem(LAYER, weight, torch.eye(32)[None]).fit(plan), weight[0]


@pytest.mark.parametrize("plan", [LayerPlan(density=0.25), LayerPlan("svd", (3,), 0.25), LayerPlan(density=0.25, pattern="block4x1")])
def test_values_are_lost_on_a_cubic_schedule_down_to_the_plan(plan):
    found, _ = fit(plan)
    gradual = Gradual({"a": found}, 0.5, 10)
    kept = [gradual.kept(step)["a"] for step in range(14)]
    assert kept[0] == 128 + 192
    assert abs(kept[5] - (128 + 192 / 8)) <= 2
    assert kept[10:] == [128] * 4
    assert all(a >= b for a, b in pairwise(kept))


@pytest.mark.parametrize("plan", [LayerPlan(density=0.25), LayerPlan("svd", (3,), 0.25), LayerPlan(density=0.25, pattern="block4x1")])
def test_the_start_has_what_the_plan_keeps_and_what_it_leaves_most_of(plan):
    found, weight = fit(plan)
    gradual = Gradual({"a": found}, 0.5, 10)
    begun = gradual.begin({"a": weight})["a"]
    assert begun.mask.sum() == 128 + 192
    assert bool((begun.mask | ~found.mask).all())
    assert torch.equal(begun.sparse[found.mask], found.sparse[found.mask])
    rest = (weight - begun.effective()).square()
    assert rest[begun.mask & ~found.mask].max() < 1e-9
    assert rest.sum() < (weight - found.effective()).square().sum()
    atoms = contract(begun.mask, LAYER, pattern(plan.pattern)).sum()
    assert atoms * pattern(plan.pattern).atom(LAYER) == begun.mask.sum()


def test_the_scales_weigh():
    found, weight = fit(LayerPlan(density=0.25))
    scale = torch.ones(1, 1, 32)
    scale[..., :4] = 1000.0
    mask = Gradual({"a": found}, 0.2, 10, {"a": scale}).begin({"a": weight})["a"].mask
    assert bool(mask[..., :4].all())


@pytest.mark.parametrize("plan", [LayerPlan(density=0.5, pattern="2:4"), LayerPlan("svd", (3,), 0.0)])
def test_other_layers_are_left_as_they_are(plan):
    found, weight = fit(plan)
    gradual = Gradual({"a": found}, 0.5, 10)
    assert gradual.kept(0) == {}
    assert gradual.begin({"a": weight})["a"] is found


def test_masks_change_a_hundred_times_at_most_and_at_the_end():
    due = [step for step in range(1200) if Gradual({}, 0.5, 1000).due(step)]
    assert due == list(range(10, 1001, 10))
    assert [step for step in range(20) if Gradual({}, 0.5, 7).due(step)] == list(range(1, 8))
    assert not any(Gradual({}, 0.0, 0).due(step) for step in range(3))
