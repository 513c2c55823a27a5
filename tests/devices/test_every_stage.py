"""Every stage of a study on a device other than the CPU, see :mod:`pretend`: tensors of both devices never meet."""

import copy
import os

import pretend
import pytest
import torch
from jobs import Notes, searching, states
from torch import nn

import lrsearch
from lrsearch.compress.inventory import inventory
from lrsearch.compress.matricize import to_matrix
from lrsearch.compress.sparsify import largest, support
from lrsearch.profile import sweep
from lrsearch.profile.statistics import collect
from lrsearch.spec.space import Range, Rule, Space
from lrsearch.study.checkpoint import load_state, save_state
from lrsearch.study.evaluator import Evaluator
from lrsearch.task.softmax import Classification

pytestmark = pytest.mark.devices
SPACE = Space(rules=(
    Rule(
        density=Range(min=0.2, max=0.6, steps=2), rank_ratio=Range(min=0.2, max=0.5, steps=2),
        combined_rank_ratio=Range(min=0.2, max=0.5, steps=1), combined_density=Range(min=0.1, max=0.3, steps=1),
    ),
))
TRAINED = {"proxy": {"finetune": {"steps": 4, "rungs": 2, "batch": 10, "masks": "reselect", "reselect_every": 1}}}


@pytest.fixture(scope="session")
def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    ).eval()


@pytest.fixture(scope="session")
def data():
    return torch.randn(60, 3, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 4


@pytest.fixture(scope="session")
def parts(data):
    x, y = data
    return {"calibration": (x[:20], y[:20]), "score": (x[20:40], y[20:40]), "train": (x[40:], y[40:])}


@pytest.fixture
def job(small, parts, tmp_path, device):
    return {
        "model": small, **parts, "space": SPACE, "budget": lrsearch.Budget(params=0.8), "out": tmp_path / "run", "device": device,
        "search": {"trials": 2, "control_points": 1, "lowest": 0.2, "sampler": "random"},
    }


@pytest.fixture(scope="session")
def trained(small, parts, tmp_path_factory, device):
    """A finished study with rungs, and its folder."""
    folder = tmp_path_factory.mktemp("trained")
    before, os.environ["LRSEARCH_CACHE"] = os.environ.get("LRSEARCH_CACHE"), str(folder / "cache")
    try:
        return lrsearch.search(
            small, **parts, space=SPACE, budget=lrsearch.Budget(params=0.8), out=folder / "run", device=device, **TRAINED,
            search={"trials": 3, "control_points": 1, "lowest": 0.2, "sampler": "random"},
        ), folder / "run"
    finally:
        os.environ.pop("LRSEARCH_CACHE") if before is None else os.environ.update(LRSEARCH_CACHE=before)


def test_the_device_refuses_what_cuda_refuses(device):
    x = torch.randn(3, 4, device=device)
    assert x.device.type == device
    for mixed in (lambda: x + torch.ones(3, 4), lambda: torch.cat([x, torch.ones(1, 4)]), lambda: torch.ones(4, 4) @ x.mT):
        with pytest.raises(RuntimeError, match="same device"):
            mixed()
    with pytest.raises(TypeError, match="to numpy"):
        x.numpy()
    assert torch.equal((x * torch.tensor(2.0)).cpu(), 2 * x.cpu())
    assert torch.equal(x[torch.tensor([2, 0])].cpu(), x.cpu()[[2, 0]])


def test_a_study_with_rungs_and_masks_chosen_anew(trained):
    """The states of paused finetunes come back on the CPU."""
    result, folder = trained
    assert set(states(folder)) <= {"COMPLETE", "PRUNED"}
    assert (result.trials.rung == 2).any()
    assert len(result.front)


def test_the_device_changes_no_score(trained, small, parts, tmp_path):
    result, _ = trained
    again = lrsearch.search(
        small, **parts, space=SPACE, budget=lrsearch.Budget(params=0.8), out=tmp_path / "run", device="cpu", **TRAINED,
        search={"trials": 3, "control_points": 1, "lowest": 0.2, "sampler": "random"},
    )
    assert result.trials.divergence.tolist() == pytest.approx(again.trials.divergence.tolist(), rel=1e-3, abs=1e-6)


def test_a_model_that_is_on_the_device_already(job, device, left_alone):
    job["model"] = copy.deepcopy(job["model"]).to(device)
    with left_alone(job["model"]):
        result = lrsearch.search(**job)
    assert len(result.front)
    x = job["score"][0]
    loaded = result.load(0)
    assert torch.isfinite(loaded(x.to(next(loaded.parameters()).device)).cpu()).all()
    certificate = result.export(job["out"] / "export", index=0)
    assert certificate.failures == []
    assert certificate.checks


def test_recover_and_polish(trained, small, parts, device, tmp_path):
    result, folder = trained
    report = lrsearch.recover(
        folder, model=small, **parts, index=0, out=tmp_path / "recovered", device=device, epochs=2, batch=10, augment="flip-crop",
    )
    assert report.after.fidelity > report.before.fidelity
    polished = lrsearch.polish(
        folder / result.front.model[0], model=small, calibration=parts["calibration"], out=tmp_path / "polished", device=device,
    )
    assert polished.examples > 0


def test_an_interrupted_study_goes_on(job, calls):
    calls.fail = lambda count: (_ for _ in ()).throw(KeyboardInterrupt) if count == 4 else None
    with pytest.raises(KeyboardInterrupt):
        lrsearch.search(**job)
    calls.fail = lambda count: None
    assert (lrsearch.search(**job).trials.source == "search").sum() == 2


def test_statistics_that_are_on_disk_meet_the_device(small, data, tmp_path, device):
    """As of models whose Gram matrices or gradients do not fit into memory."""
    on_device = copy.deepcopy(small).to(device)
    layers = inventory(small, data[0][:2]).layers
    found = {
        cap: collect(on_device, layers, [data[0][:20].to(device)], data[0][20:40].to(device).split(5), tmp_path / str(cap), cap)
        for cap in (0, 2**20)
    }
    for layer in layers:
        on_disk, kept = (found[cap][layer.name] for cap in (0, 2**20))
        weight = to_matrix(on_device.get_parameter(f"{layer.name}.weight").detach(), layer)
        menu = SPACE.menus([layer], {})[layer.name]
        tensors = [sweep.sweep(weight, layer, menu, statistics) for statistics in (on_disk, kept)]
        assert all(torch.allclose(tensors[0][key].float(), tensors[1][key].float(), atol=1e-5) for key in ("damage", "error"))
    assert any((tmp_path / "0").rglob("*.gram"))
    assert any((tmp_path / "0").rglob("*.safetensors"))


def test_outputs_without_a_gradient_have_no_sketches_but_on_the_device(small, data, device):
    on_device = copy.deepcopy(small).to(device)
    layers = inventory(small, data[0][:2]).layers

    class Decided(Classification):
        def run(self, model, inputs):
            found = super().run(model, inputs)
            return {**found, "values": found["values"].detach()}

    inputs = data[0][:20].to(device)
    found = collect(on_device, layers, [inputs], [inputs], task=Decided())[layers[0].name]
    assert found.damage(torch.zeros(2, *layers[0].matrix_shape, device=device)).cpu().tolist() == [0, 0]


def test_linear_algebra_is_entered_by_one_thread(job, monkeypatch):
    pretend.entered.clear()
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        lrsearch.search(**searching(job, trials=1))
    finally:
        torch.set_num_threads(before)
    assert len(pretend.entered) <= 2  # the profile's worker, and the main thread after it


def test_a_finetune_goes_on_from_a_state_that_was_on_disk(small, parts, tmp_path, device):
    """Equal to one that never paused."""
    from lrsearch.compress.fit import FitProblem
    from lrsearch.spec.config import ProxyConfig
    from lrsearch.spec.plan import LayerPlan
    from lrsearch.task.data import Examples

    (layer,) = (spec for spec in inventory(small, parts["score"][0][:2]).layers if spec.kind == "conv2d")
    weight = to_matrix(small.get_parameter(f"{layer.name}.weight").detach(), layer).to(device)
    gram = torch.eye(layer.columns).expand(layer.groups, -1, -1).to(device)
    fits = {layer.name: FitProblem(layer, weight, gram).fit(LayerPlan(format="svd", rank=(2,), density=0.3))}
    config = ProxyConfig(**TRAINED["proxy"])
    sets = [Examples(parts[role], role) for role in ("calibration", "score", "train")]
    evaluator = Evaluator(small, *sets, config, Classification(), device)
    whole = evaluator.training(fits).run(4)[layer.name].effective().cpu()
    first = evaluator.training(fits)
    first.run(2)
    save_state(tmp_path / "state.pt", "mine", first.state_dict())
    again = evaluator.training(fits, load_state(tmp_path / "state.pt", "mine"))
    assert torch.allclose(again.run(4)[layer.name].effective().cpu(), whole, atol=1e-6)


@pytest.mark.parametrize("kept", [1, 5, 24])
def test_the_same_values_are_kept(kept, device):
    values = torch.randn(4, 6, generator=torch.Generator().manual_seed(kept))
    assert torch.equal(support(values.to(device), kept).cpu(), support(values, kept))
    assert torch.equal(largest(values.to(device), kept).cpu(), largest(values, kept))


def test_a_device_that_is_not_there_is_one_line(job):
    with pytest.raises(lrsearch.LrsearchError, match="torch must know and reach the device"):
        lrsearch.search(**{**job, "device": "cuda"}, progress=Notes())
