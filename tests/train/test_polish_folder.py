import copy
import json

import pytest
import torch
from outputs import divergence, everything, predict
from torch import nn

import lrsearch
from lrsearch.compress import artifact
from lrsearch.compress.apply import compress
from lrsearch.compress.inventory import inventory
from lrsearch.compress.split import split
from lrsearch.compress.storage import Storage
from lrsearch.spec.plan import LayerPlan, Plan
from lrsearch.train.polish import LEAST_BATCHES
from lrsearch.workflows.steps import polish_folder as polish
from lrsearch.workflows.steps.polish_folder import polish_folder


@pytest.fixture
def spied(monkeypatch):
    """Arguments of the polish that was made, and what it found."""
    seen = []

    def spy(*args, original=polish.polish):
        seen.extend([*args, original(*args)])
        return seen[-1]

    monkeypatch.setattr(polish, "polish", spy)
    return seen


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def held_out_divergence(model, dense, held_out):
    return float(divergence(predict(model, held_out, 50), predict(dense, held_out, 50)).mean())


def test_a_better_model_is_written_and_scores_what_the_report_says(folder, network, sets, plan, tmp_path):
    report = polish_folder(folder, network, sets["calibration"], tmp_path / "out")
    assert report.folder == tmp_path / "out"
    assert (report.examples, report.held_out) == (45, 15)
    held_out = sets["calibration"].part(range(45, 60))
    assert report.before == pytest.approx(held_out_divergence(artifact.load(folder, network), network, held_out), rel=1e-4)
    assert report.after == pytest.approx(held_out_divergence(artifact.load(report.folder, network), network, held_out), rel=1e-3)
    assert report.after < 0.8 * report.before
    before, after = (held_out_divergence(artifact.load(f, network), network, sets["score"]) for f in (folder, report.folder))
    assert after < 0.8 * before


def test_fits_biases_and_batchnorm_statistics_are_those_found(folder, network, sets, tmp_path, spied):
    report = polish_folder(folder, network, sets["calibration"], tmp_path / "out")
    small, found = artifact.load(report.folder, network), spied[-1]
    assert found.tensors.keys() >= {"norm.running_mean", "norm.running_var", "head.bias"}
    assert all(torch.equal(small.state_dict()[name], tensor) for name, tensor in found.tensors.items())
    for name, fit in found.fits.items():
        weight = small.get_submodule(name).weight
        torch.testing.assert_close(weight, fit.effective().view_as(weight))


def test_the_plan_and_what_is_known_of_the_model_are_kept(folder, network, sets, plan, tmp_path):
    before = contents(folder)
    report = polish_folder(folder, network, sets["calibration"], tmp_path / "out")
    found, about = artifact.read_plan(report.folder)
    assert found == plan
    assert about.pop("storage")["values"] == "float32"
    assert about == {"model": None, "scores": [1, 2], "polished": {"held_out_divergence": report.after, "before": report.before}}
    assert contents(folder) == before


def test_a_polished_file_has_the_type_and_the_size_of_the_first(network, layers, plan, fits, sets, tmp_path):
    storage = Storage(layers, "int8")
    artifact.save(compress(network, layers, plan, fits), plan, tmp_path / "a", {}, storage)
    report = polish_folder(tmp_path / "a", network, sets["calibration"], tmp_path / "b")
    first, second = ((tmp_path / name / artifact.WEIGHTS).stat().st_size for name in "ab")
    assert first == second
    assert artifact.read_storage(tmp_path / "b", network) == artifact.read_storage(tmp_path / "a", network)
    held_out = sets["calibration"].part(range(45, 60))
    assert report.after == pytest.approx(held_out_divergence(artifact.load(tmp_path / "b", network), network, held_out), rel=1e-3)


def test_the_held_out_examples_are_not_fitted_to(folder, network, sets, tmp_path, spied):
    report = polish_folder(folder, network, sets["calibration"], tmp_path / "out", share=0.4, batch=7)
    assert (report.examples, report.held_out) == (36, 24)
    assert torch.equal(torch.cat(spied[3]), everything(sets["calibration"])[0][:36])


@pytest.mark.parametrize(
    ("most", "batch", "sizes"), [(45, 100, [6] * 7 + [3]), (45, 4, [4] * 11 + [1]), (16, 100, [2] * 8), (3, 100, [1] * 3)], ids=str
)
def test_as_many_examples_as_memory_allows_in_no_fewer_batches_than_the_check_needs(
    folder, network, sets, tmp_path, spied, monkeypatch, most, batch, sizes
):
    monkeypatch.setattr("lrsearch.train.polish.examples_that_fit", lambda *_: most)
    report = polish_folder(folder, network, sets["calibration"], tmp_path / "out", batch=batch)
    assert report.examples == most == sum(sizes)
    assert [len(x) for x in spied[3]] == sizes
    assert len(sizes) >= min(LEAST_BATCHES, most)


@pytest.mark.parametrize("training", [False, True])
def test_the_base_model_is_left_alone(folder, network, sets, tmp_path, left_alone, training):
    network.train(training)
    with left_alone(network):
        polish_folder(folder, network, sets["calibration"], tmp_path / "out")


def test_a_model_with_split_layers(sets, tmp_path, white_fits, left_alone):
    base = nn.Sequential(nn.Flatten(), nn.Linear(432, 12), nn.ReLU(), nn.Linear(12, 4)).eval()
    fused = split(base, ["1"])
    layers = inventory(fused, sets["calibration"].sample(2)).layers
    plan = Plan({"1.q": LayerPlan("svd", (2,), 0.0), "1.v": LayerPlan(density=0.1), "3": LayerPlan(density=0.5)})
    artifact.save(compress(fused, layers, plan, white_fits(fused, layers, plan)), plan, tmp_path / "a", {"split": ["1"]})
    with left_alone(base):
        report = polish_folder(tmp_path / "a", base, sets["calibration"], tmp_path / "b")
    assert report.after < report.before
    assert artifact.read_plan(tmp_path / "b")[0] == plan
    held_out = sets["calibration"].part(range(45, 60))
    assert held_out_divergence(artifact.load(tmp_path / "b", base), base, held_out) == pytest.approx(report.after, rel=1e-3)


def test_from_python_the_polished_model_goes_beside_the_other(folder, network, tiny_data):
    data = tuple(t[:60] for t in tiny_data)
    report = lrsearch.polish(folder, model=network, calibration=data)
    assert report.folder == folder.with_name("0012-polished")
    first = contents(report.folder)
    again = lrsearch.polish(str(folder), model=copy.deepcopy(network), calibration=data, out=str(folder.with_name("mine")))
    assert again.folder == folder.with_name("mine")
    assert contents(again.folder) == first


def test_a_folder_named_by_a_dot_is_polished_beside_itself(folder, network, tiny_data, monkeypatch):
    monkeypatch.chdir(folder)
    report = lrsearch.polish(".", model=network, calibration=tuple(t[:60] for t in tiny_data))
    assert report.folder.resolve() == folder.with_name("0012-polished").resolve()
    assert json.loads((folder.with_name("0012-polished") / "plan.json").read_text())["polished"]
