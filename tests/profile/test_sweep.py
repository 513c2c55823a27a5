import copy

import numpy as np
import pytest
import torch
from torch import nn

from lrsearch.compress.apply import compress, write_effective
from lrsearch.compress.inventory import inventory
from lrsearch.compress.matricize import to_matrix
from lrsearch.profile import sweep as module
from lrsearch.profile.statistics import collect
from lrsearch.profile.sweep import Profile, build, fingerprint, sweep
from lrsearch.spec.plan import LayerPlan, Plan

MENU = [LayerPlan(), LayerPlan(density=0.2), LayerPlan(density=0.6), LayerPlan("svd", (2,), 0.0), LayerPlan("svd", (2,), 0.1)]


@pytest.fixture
def layers(tiny_model, tiny_data):
    return inventory(tiny_model, tiny_data[0][:2]).layers


@pytest.fixture
def menus(layers):
    return {layer.name: [c for c in MENU if layer.max_rank or not c.rank] for layer in layers}


@pytest.fixture
def profile(tiny_model, tiny_data, layers, menus, tmp_path) -> Profile:
    return build(tiny_model, layers, menus, tiny_data[0].split(80), tmp_path / "deep" / "profile")


def test_fits_read_back_are_those_that_were_swept(tiny_model, tiny_data, layers, menus, profile):
    statistics = collect(tiny_model, layers, tiny_data[0].split(80))
    for layer in layers:
        weight = to_matrix(tiny_model.get_submodule(layer.name).weight.detach(), layer.groups)
        swept = sweep(weight, layer, menus[layer.name], statistics[layer.name])
        for i, choice in enumerate(menus[layer.name][1:], 1):
            fit = profile.fits(Plan({layer.name: choice}))[layer.name]
            assert int(fit.mask.sum()) == choice.kept(layer)
            assert torch.equal(fit.sparse[fit.mask], swept[f"{i}.values"])
            low_rank = swept[f"{i}.left"] @ swept[f"{i}.right"] if choice.rank else 0.0
            torch.testing.assert_close(fit.effective() - fit.sparse, low_rank + torch.zeros_like(weight))


def test_error_and_damage_are_of_the_fits_read_back(tiny_model, tiny_data, layers, menus, profile):
    statistics = collect(tiny_model, layers, tiny_data[0].split(80))
    for layer in layers:
        gram, curvature = statistics[layer.name].gram, statistics[layer.name].curvature
        weight = to_matrix(tiny_model.get_submodule(layer.name).weight.detach(), layer.groups)
        for i, choice in enumerate(menus[layer.name]):
            rest = weight - profile.fits(Plan({layer.name: choice}))[layer.name].effective() if i else torch.zeros_like(weight)
            rows = ((rest @ gram) * rest).sum(-1).flatten()
            assert profile.error[layer.name][i] == pytest.approx(float(rows.sum() / ((weight @ gram) * weight).sum()), rel=1e-3)
            assert profile.damage[layer.name][i] == pytest.approx(float(rows @ curvature), rel=1e-3)


def test_damage_is_zero_for_dense_alone_and_falls_with_density(profile, menus):
    for name, menu in menus.items():
        damage = dict(zip(menu, profile.damage[name], strict=True))
        assert damage[LayerPlan()] == profile.error[name][0] == 0
        assert damage[LayerPlan(density=0.2)] > damage[LayerPlan(density=0.6)] > 0


def test_plans_from_the_profile_make_a_model(tiny_model, tiny_data, layers, profile):
    plan = Plan({"stem": MENU[4], "depthwise": MENU[2], "head": MENU[3]})
    fits = profile.fits(plan)
    small = compress(tiny_model, layers, plan, fits)
    write_effective(tiny_model, fits)
    torch.testing.assert_close(small(tiny_data[0]), tiny_model(tiny_data[0]), rtol=1e-4, atol=1e-4)


def test_build_leaves_the_model_alone(tiny_model, tiny_data, layers, menus, tmp_path):
    before = copy.deepcopy(tiny_model.state_dict())
    build(tiny_model, layers, menus, tiny_data[0].split(80), tmp_path / "p")
    assert all(torch.equal(v, before[k]) for k, v in tiny_model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in tiny_model.parameters())


def test_build_resumes_with_the_missing_layer_alone(tiny_model, tiny_data, layers, menus, profile, monkeypatch):
    before = {p.name: p.read_bytes() for p in profile.folder.iterdir()}
    profile.path("grouped").unlink()
    swept, told = [], []
    monkeypatch.setattr(module, "sweep", lambda w, layer, *rest: swept.append(layer.name) or sweep(w, layer, *rest))
    build(tiny_model, layers, menus, tiny_data[0].split(80), profile.folder, told.append)
    assert swept == ["grouped"]
    assert told == [layer.name for layer in layers]
    assert {p.name: p.read_bytes() for p in profile.folder.iterdir()} == before


def test_a_complete_profile_reads_no_data(tiny_model, layers, menus, profile):
    def batches():
        raise AssertionError
        yield

    again = build(tiny_model, layers, menus, batches(), profile.folder)
    assert all(np.array_equal(again.damage[n], profile.damage[n]) for n in menus)


def test_a_killed_build_leaves_no_layer_half_written(tiny_model, tiny_data, layers, menus, tmp_path, monkeypatch):
    def killed(_, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        build(tiny_model, layers, menus, tiny_data[0].split(80), tmp_path)
    monkeypatch.undo()
    profile = build(tiny_model, layers, menus, tiny_data[0].split(80), tmp_path)
    assert all(np.isfinite(profile.damage[n]).all() for n in menus)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_precisions(dtype, tmp_path):
    model, x = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)).to(dtype), torch.randn(32, 12, dtype=dtype)
    layers = inventory(model, x[:2]).layers
    profile = build(model, layers, {layer.name: MENU for layer in layers}, [x], tmp_path)
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
        fingerprint(tiny_model, menus, "other data"),
    ]
    assert len({first, *others}) == 5
