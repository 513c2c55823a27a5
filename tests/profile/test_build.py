"""What a build leaves, and where an interrupted one goes on."""

from contextlib import contextmanager
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
import torch
from jobs import interrupt

from lrsearch.profile import build as module
from lrsearch.profile.build import LOCK, build
from lrsearch.profile.statistics import collect, on_disk
from lrsearch.profile.sweep import Profile, sweep
from lrsearch.spec import atomic
from lrsearch.spec.atomic import WRITING
from lrsearch.spec.blobs import SEALS, LocalStore
from lrsearch.spec.plan import LayerPlan


@pytest.fixture
def menus(layers):
    return {layer.name: [LayerPlan(), LayerPlan(density=0.6), LayerPlan(density=0.2)] for layer in layers}


@pytest.fixture
def profile(tiny_model, layers, menus, parts, tmp_path) -> Profile:
    return build(tiny_model, layers, menus, *parts, tmp_path / "deep" / "profile")


def test_a_build_resumes_with_the_missing_layer_alone(tiny_model, layers, menus, parts, profile, monkeypatch):
    before = {p.name: p.read_bytes() for p in profile.folder.glob("*.safetensors")}
    profile.path("grouped").unlink()
    swept, stages, steps, shares = [], [], [], []
    monkeypatch.setattr(module, "sweep", lambda w, layer, *rest: swept.append(layer.name) or sweep(w, layer, *rest))
    tell = (lambda *stage: stages.append(stage)), (lambda: steps.append(len(stages)))
    build(tiny_model, layers, menus, *parts, profile.folder, *tell, expect=shares.append)
    assert swept == ["grouped"]
    assert stages == [("Statistics", 0), ("Fitting", len(layers) - 1)]  # what was fitted before is told at once
    assert [steps.count(1), steps.count(2)] == [sum(map(len, parts)), 1]
    assert shares == [1.0]  # of what was left to do
    assert {p.name: p.read_bytes() for p in profile.folder.glob("*.safetensors")} == before


def test_layers_are_fitted_side_by_side_to_the_same_end(tiny_model, layers, menus, parts, profile, monkeypatch, tmp_path):
    threads, met, barrier = torch.get_num_threads(), [], Barrier(2)

    def together(*args):
        if len(met) < 2:
            met.append(torch.get_num_threads())
            barrier.wait(timeout=60)
        return sweep(*args)

    monkeypatch.setattr(module, "sweep", together)
    torch.set_num_threads(2)
    try:
        found = build(tiny_model, layers, menus, *parts, tmp_path / "other")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert met == [1, 1]
    for name in menus:
        np.testing.assert_allclose(found.damage[name], profile.damage[name], rtol=1e-3, atol=1e-9)


def test_a_complete_profile_reads_no_data(tiny_model, layers, menus, profile):
    def batches():
        raise AssertionError
        yield

    again = build(tiny_model, layers, menus, batches(), batches(), profile.folder)
    assert all(np.array_equal(again.damage[n], profile.damage[n]) for n in menus)


def test_a_killed_build_leaves_no_layer_half_written(tiny_model, layers, menus, parts, tmp_path, monkeypatch):
    def killed(scratch, _):
        Path(scratch).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(atomic.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        build(tiny_model, layers, menus, *parts, tmp_path)
    monkeypatch.undo()
    profile = build(tiny_model, layers, menus, *parts, tmp_path)
    assert all(np.isfinite(profile.damage[n]).all() for n in menus)
    assert not [p for p in tmp_path.rglob("*") if WRITING in p.name]


def test_a_build_leaves_nothing_but_the_layers_files(tiny_model, layers, menus, parts, monkeypatch, tmp_path):
    collected = []
    monkeypatch.setattr(module, "collect", lambda *a, **k: collected.append(a[4]) or collect(*a, cap=0, **k))
    profile = build(tiny_model, layers, menus, *parts, tmp_path / "other")
    assert collected == [tmp_path / "other" / "blocks"]
    fits = {profile.path(layer.name).name for layer in layers}
    assert {p.name for p in (tmp_path / "other").iterdir()} == fits | {SEALS, LOCK}


def test_statistics_that_find_no_room_are_collected_for_one_layer_after_another(
    tiny_model, layers, menus, parts, profile, monkeypatch, tmp_path,
):
    collected, stages, steps, expected = [], [], [], []
    watched = lambda model, some, *a, **k: collected.append([s.name for s in some]) or collect(model, some, *a, **k)  # noqa: E731
    monkeypatch.setattr(module, "collect", watched)
    room = max(on_disk([layer], len(parts[1]), 0) for layer in layers)
    monkeypatch.setattr(module, "STATISTICS_CAP", 0)
    monkeypatch.setenv("LRSEARCH_DISK", f"{(room + 1) / 2**20:.6f} MiB")
    found = build(
        tiny_model, layers, menus, *parts, tmp_path / "other", lambda *stage: stages.append(stage), lambda: steps.append(len(stages)),
        expect=expected.append, sketches=len(parts[1]),
    )
    assert len(collected) > 1
    assert sorted(name for some in collected for name in some) == sorted(menus)
    of = {layer.name: layer for layer in layers}
    assert all(on_disk([of[name] for name in some], len(parts[1]), 0) <= room + 1 for some in collected)
    assert [title for title, _ in stages] == ["Statistics", "Fitting"] * len(collected)
    assert [done for title, done in stages if title == "Statistics"] == [0] * len(collected)
    assert stages[1][1] == 0
    assert stages[-1][1] + steps.count(len(stages)) == len(layers)
    assert expected[-1] == 1
    for name in menus:  # the same directions, whoever is collected
        np.testing.assert_allclose(found.damage[name], profile.damage[name], rtol=1e-3, atol=1e-9)


class Shared:
    """Claims of a worker beside others: who has the parts in ``busy``, and has made them when this one has waited."""

    def __init__(self, busy=(), made=lambda name: None):
        self.busy, self.made, self.asked, self.waited = set(busy), made, [], []

    @contextmanager
    def free(self, names, most):
        self.asked.append((list(names), most))
        yield [name for name in names if name not in self.busy][:most]

    @contextmanager
    def sole(self, what):
        self.waited.append(what)
        self.made(what)
        yield


def test_what_other_workers_have_is_left_to_them_and_waited_for(tiny_model, layers, menus, parts, profile, monkeypatch, tmp_path):
    swept, stages, steps, shares = [], [], [], []

    def fetch(name):
        blob = profile.blob(layers[int(name[-1])].name)
        LocalStore(tmp_path / "other").put(blob, (profile.folder / blob).read_bytes())

    monkeypatch.setattr(module, "PART", 0.0)
    monkeypatch.setattr(module, "_cores", lambda device: 2)
    monkeypatch.setattr(module, "sweep", lambda w, layer, *rest: swept.append(layer.name) or sweep(w, layer, *rest))
    claims = Shared({"profile, part 1", "profile, part 3"}, fetch)
    tell = (lambda *stage: stages.append(stage)), (lambda: steps.append(len(stages)))
    found = build(tiny_model, layers, menus, *parts, tmp_path / "other", *tell, expect=shares.append, claims=claims, sketches=len(parts[1]))
    assert sorted(swept) == sorted(layer.name for i, layer in enumerate(layers) if i not in (1, 3))
    assert claims.waited == ["profile, part 1", "profile, part 3"]
    assert {most for _, most in claims.asked} == {2}
    assert stages[-1] == ("Fitting", len(layers))  # the last were made by others
    assert max(shares) < 1
    for name in menus:
        np.testing.assert_allclose(found.damage[name], profile.damage[name], rtol=1e-3, atol=1e-9)


def test_who_is_alone_collects_the_statistics_of_all_parts_at_once(tiny_model, layers, menus, parts, monkeypatch, tmp_path):
    collected = []
    monkeypatch.setattr(module, "PART", 0.0)
    monkeypatch.setattr(module, "collect", lambda m, some, *a, **k: collected.append(len(some)) or collect(m, some, *a, **k))
    build(tiny_model, layers, menus, *parts, tmp_path)
    assert collected == [len(layers)]


def test_a_worker_takes_as_many_parts_as_it_has_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert module._cores(torch.device("cpu")) == 3
    finally:
        torch.set_num_threads(threads)
    assert module._cores(torch.device("meta")) == module.ACCELERATOR


def test_parts_are_of_about_as_long_fits_in_the_models_order(layers, menus, monkeypatch):
    whole = sum(module.core_seconds(layer, 3) for layer in layers)
    assert module.parts(layers, menus) == [list(layers)]
    monkeypatch.setattr(module, "PART", whole / 2)
    found = module.parts(layers, menus)
    assert [layer for part in found for layer in part] == list(layers)
    assert len(found) > 1
    longest = max(module.core_seconds(layer, 3) for layer in layers)
    assert all(sum(module.core_seconds(layer, 3) for layer in part) <= whole / 2 + longest for part in found)


def test_statistics_are_removed_from_the_disk_however_a_build_ends(tiny_model, layers, menus, parts, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "collect", lambda *a, **k: collect(*a, cap=0, **k))
    monkeypatch.setattr(module, "sweep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build(tiny_model, layers, menus, *parts, tmp_path)
    assert not (tmp_path / "blocks").exists()


def test_statistics_that_a_killed_build_left_are_removed_also_where_others_made_the_rest(tiny_model, layers, menus, parts, profile):
    left = profile.folder / "blocks" / "0.gram"
    left.parent.mkdir()
    left.write_bytes(b"half")
    build(tiny_model, layers, menus, *parts, profile.folder)
    assert not left.parent.exists()


@pytest.mark.parametrize("cap", [0, 20_000, 60_000, 10**9])
def test_statistics_take_no_more_of_the_disk_than_is_said(tiny_model, layers, parts, tmp_path, cap):
    collect(tiny_model, layers, *parts, tmp_path / "blocks", cap)
    taken = sum(path.stat().st_size for path in (tmp_path / "blocks").rglob("*") if path.is_file())
    said, headers = on_disk(layers, len(parts[1]), cap), 1000 * len(parts[1])
    assert taken <= said + (headers if said else 0)
