import copy
import gc
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from lrsearch.compress.apply import compress, write_effective
from lrsearch.compress.fit import FitProblem
from lrsearch.compress.inventory import inventory
from lrsearch.compress.matricize import to_matrix
from lrsearch.compress.shrinkage import best_shrinkage
from lrsearch.profile import sweep as module
from lrsearch.profile.build import build
from lrsearch.profile.importance import importance
from lrsearch.profile.statistics import LayerStatistics, collect
from lrsearch.profile.sweep import Profile, agreed, fingerprint, sweep
from lrsearch.spec.formats import FORMATS
from lrsearch.spec.plan import LayerPlan, Plan

MENU = [LayerPlan(), LayerPlan(density=0.2), LayerPlan(density=0.6), LayerPlan("svd", (2,), 0.0), LayerPlan("svd", (2,), 0.1)]
MORE = [
    LayerPlan("tucker2", (2, 2), 0.0), LayerPlan("tucker2", (2, 2), 0.1), LayerPlan("tt", (2, 2), 0.1), LayerPlan("tt", (2, 2, 2), 0.1),
    LayerPlan(density=0.5, pattern="row"), LayerPlan(density=0.5, pattern="2:4"), LayerPlan("svd", (2,), 0.25, "column"),
]  # fmt: skip


@pytest.fixture
def menus(layers):
    """All formats and patterns for the stem and the head, few choices for the others."""
    long = {"stem": [*MENU, *MORE], "head": [*MENU, *MORE]}
    return {layer.name: [c for c in long.get(layer.name, MENU) if not c.refusal(layer)] for layer in layers}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return tmp_path_factory.mktemp("profile")


@pytest.fixture
def profile(tiny_model, layers, menus, parts, finished) -> Profile:
    """Built once; only to be read."""
    return build(tiny_model, layers, menus, *parts, finished / "deep" / "profile")


def matrix(model, layer):
    return to_matrix(model.get_submodule(layer.name).weight.detach(), layer)


def test_fits_read_back_are_those_that_were_swept(tiny_model, layers, menus, parts, profile):
    statistics = collect(tiny_model, layers, *parts)
    for layer in layers:
        swept = sweep(matrix(tiny_model, layer), layer, menus[layer.name], statistics[layer.name])
        for i, choice in enumerate(menus[layer.name][1:], 1):
            fit = profile.fits(Plan({layer.name: choice}))[layer.name]
            assert (fit.layer, fit.plan, int(fit.mask.sum())) == (layer, choice, choice.kept(layer))
            assert torch.equal(fit.sparse[fit.mask], swept[f"{i}.values"])
            assert not fit.sparse[~fit.mask].any()
            assert [tuple(f.shape) for f in fit.factors] == list(FORMATS[choice.format].shapes(layer, choice.rank) if choice.rank else ())
            assert all(torch.equal(f, swept[f"{i}.{k}"]) for k, f in enumerate(fit.factors))


def test_error_and_damage_are_those_of_the_fits_read_back_on_the_check_batches(tiny_model, layers, menus, parts, profile):
    statistics = collect(tiny_model, layers, *parts)
    for layer in layers:
        gram, weight = statistics[layer.name].check, matrix(tiny_model, layer)
        for i, choice in enumerate(menus[layer.name]):
            rest = weight - profile.fits(Plan({layer.name: choice}))[layer.name].effective() if i else torch.zeros_like(weight)
            error = ((rest @ gram) * rest).sum() / ((weight @ gram) * weight).sum()
            assert profile.error[layer.name][i] == pytest.approx(float(error), rel=1e-3)
            assert profile.sketched[layer.name][i] == pytest.approx(float(statistics[layer.name].damage(rest[None])), rel=1e-3)


@pytest.mark.parametrize("choice", [LayerPlan(density=0.3), LayerPlan("svd", (2,), 0.0)], ids=str)
def test_fits_are_made_to_the_batches_to_fit_to_as_far_as_the_others_agree(tiny_model, layers, tiny_data, choice):
    """A few examples to fit to: the Gram matrix is shrunk as the check batches say."""
    layer, x = layers[0], tiny_data[0]
    statistics, weight = collect(tiny_model, [layer], [x[:2]], [x[100:]])["stem"], matrix(tiny_model, layer)
    share = best_shrinkage(layer, weight, statistics.gram, statistics.check)
    assert share.whole > 0
    expected = FitProblem(layer, weight, statistics.gram, share, importance(statistics.gram, statistics.sketches)).fit(choice)
    swept = sweep(weight, layer, [LayerPlan(), choice], statistics)
    assert torch.equal(swept["1.values"], expected.sparse[expected.mask])
    assert all(torch.equal(swept[f"1.{k}"], f) for k, f in enumerate(expected.factors))


def test_damage_is_zero_for_dense_alone_and_falls_with_density(profile, menus):
    for name, menu in menus.items():
        damage = dict(zip(menu, profile.damage[name], strict=True))
        assert damage[LayerPlan()] == profile.error[name][0] == 0
        assert damage[LayerPlan(density=0.2)] > damage[LayerPlan(density=0.6)] > 0


def test_damage_is_the_mean_of_what_sketches_and_errors_say():
    sketched, error = np.array([0.0, 1.0, 4.0, 9.0, 0.0]), np.array([0.0, 0.1, 0.1, 0.0, 0.3])
    np.testing.assert_allclose(agreed(sketched, error), [0, 2**0.5, 8**0.5, 9, 0])  # an error of 0.1 is worth 2
    np.testing.assert_allclose(agreed(sketched, 7 * error), agreed(sketched, error))
    np.testing.assert_allclose(agreed(3 * error, error), 3 * error)
    assert not agreed(np.zeros(3), np.zeros(3)).any()


def test_of_choices_in_truth_alike_it_misleads_less_than_sketches_do():
    """As an allocation sees it: how much less than the truth the most flattered choice seems to do."""
    generator = np.random.default_rng(0)
    sketched = np.exp(generator.normal(0, 0.3, (1000, 20)))
    both = np.stack([agreed(row, np.ones(20)) for row in sketched])
    assert both.min(1).mean() > 0.7
    assert sketched.min(1).mean() < 0.6


def test_plans_from_the_profile_make_a_model(tiny_model, tiny_data, layers, profile):
    plan = Plan({"stem": MORE[1], "depthwise": MENU[2], "pointwise": MENU[3], "head": MORE[5]})
    fits = profile.fits(plan)
    small = compress(tiny_model, layers, plan, fits)
    write_effective(tiny_model, fits)
    torch.testing.assert_close(small(tiny_data[0]), tiny_model(tiny_data[0]), rtol=1e-4, atol=1e-4)


def test_build_leaves_the_model_alone(tiny_model, layers, menus, parts, tmp_path, left_alone):
    with left_alone(tiny_model):
        build(tiny_model, layers, {layer.name: MENU[:2] for layer in layers}, *parts, tmp_path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_precisions(dtype, tmp_path):
    model, x = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)).to(dtype), torch.randn(32, 12, dtype=dtype)
    layers = inventory(model, x[:2]).layers
    profile = build(model, layers, {layer.name: MENU for layer in layers}, [x[:24]], [x[24:]], tmp_path)
    plan = Plan({"0": MENU[4], "2": MENU[1]})
    assert compress(model, layers, plan, profile.fits(plan))(x).dtype == dtype
    assert profile.damage["0"][1] > profile.damage["0"][2] > 0


def test_fingerprint_changes_with_weights_buffers_menus_and_data(tiny_model, menus):
    first = fingerprint(tiny_model, menus, "data")
    assert fingerprint(copy.deepcopy(tiny_model), copy.deepcopy(menus), "data") == first
    weights, buffers = copy.deepcopy(tiny_model), copy.deepcopy(tiny_model)
    weights.head.weight.data[0, 0] += 1e-3
    buffers.norm.running_mean[0] += 1e-3
    others = [
        fingerprint(weights, menus, "data"),
        fingerprint(buffers, menus, "data"),
        fingerprint(tiny_model, {**menus, "head": MENU[:2]}, "data"),
        fingerprint(tiny_model, {**menus, "head": [MENU[0], LayerPlan(density=0.5, pattern="2:4")]}, "data"),
        fingerprint(tiny_model, {**menus, "head": [MENU[0], LayerPlan(density=0.5)]}, "data"),
        fingerprint(tiny_model, menus, "other data"),
    ]
    assert len({first, *others}) == 7


def test_no_matrix_of_a_layer_outlives_its_fits(tiny_model, layers, parts, monkeypatch):
    """Of ViT-B the matrices of a layer take 0.2 GiB, and there are few objects between them to start the garbage collector."""
    problems, init = [], FitProblem.__init__
    monkeypatch.setattr(FitProblem, "__init__", lambda self, *a, **k: init(self, *a, **k) or problems.append(weakref.ref(self)))
    statistics = collect(tiny_model, layers, *parts)
    gc.disable()
    try:
        for layer in layers:
            sweep(matrix(tiny_model, layer), layer, MENU[:1] if layer.groups > 1 else MENU, statistics[layer.name])
        assert len(problems) > len(layers)
        assert not [problem for problem in problems if problem() is not None]
    finally:
        gc.enable()


def test_fits_are_the_same_however_many_are_judged_at_once(tiny_model, layers, menus, parts, monkeypatch):
    statistics = collect(tiny_model, layers, *parts)
    judged, stem = [], layers[0]
    whole = sweep(matrix(tiny_model, stem), stem, menus["stem"], statistics["stem"])
    monkeypatch.setattr(module, "FITS_CAP", 2 * module.PER_VALUE * stem.numel)
    monkeypatch.setattr(LayerStatistics, "damage", lambda self, x, of=LayerStatistics.damage: judged.append(len(x)) or of(self, x))
    found = sweep(matrix(tiny_model, stem), stem, menus["stem"], statistics["stem"])
    assert set(judged[:-1]) == {2}
    assert sum(judged) == len(menus["stem"]) - 1
    assert all(torch.equal(found[key], whole[key]) for key in whole if "." in key)
    torch.testing.assert_close(found["damage"], whole["damage"])
    torch.testing.assert_close(found["error"], whole["error"])
