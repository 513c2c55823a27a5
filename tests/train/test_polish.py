import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lrsearch.compress.apply import compress
from lrsearch.compress.fit import Shrinkage
from lrsearch.compress.inventory import layer_spec
from lrsearch.compress.matricize import input_rows
from lrsearch.spec.plan import LayerPlan, Plan
from lrsearch.task.data import Examples
from lrsearch.task.forward import examples_in
from lrsearch.train import polish as module
from lrsearch.train.polish import examples_that_fit, polish, polish_batches

BATCHES = 4


@pytest.fixture
def x(tiny_data):
    """120 examples to fit to; the other 40 are held out."""
    return tiny_data[0][:120]


@pytest.fixture
def polished(network, layers, plan, x):
    return polish(network, layers, plan, x.chunk(BATCHES))


@pytest.fixture
def small(network, layers, plan, polished, built):
    return built(network, layers, plan, polished)


@torch.no_grad()
def seen(model, x, kind, names):
    """Inputs or outputs of the modules ``names``."""
    found = {}
    for name in names:
        model.get_submodule(name).register_forward_hook(lambda _, i, o, n=name: found.update({n: i[0] if kind == "inputs" else o}))
    model(x)
    return found


def test_the_error_of_the_output_falls_on_held_out_inputs(small, network, layers, plan, tiny_data, x, error, unpolished):
    before = error(unpolished(network, layers, plan, x), network, tiny_data[0][120:])
    assert error(small, network, tiny_data[0][120:]) < 0.7 * before


def test_a_layer_is_fitted_to_the_dense_output_not_to_its_own_weight(built, error):
    """So even one that loses next to nothing makes up for what an earlier one lost."""
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 4, bias=False)).eval()
    x, layers = torch.randn(400, 8) @ torch.randn(8, 8), [layer_spec(model[i], str(i)) for i in (0, 1)]
    plan = Plan({"0": LayerPlan(density=0.25), "1": LayerPlan(density=0.97)})
    found = polish(model, layers, plan, x[:300].chunk(BATCHES))
    first = Plan({"0": plan["0"]})
    before = compress(model, layers, first, {"0": found.fits["0"]})
    assert error(built(model, layers, plan, found), model, x[300:]) < 0.8 * error(before, model, x[300:])


def test_the_last_quarter_of_the_batches_says_how_far_to_shrink(network, layers, x, monkeypatch):
    asked = []
    original = module.best_shrinkage
    monkeypatch.setattr(module, "best_shrinkage", lambda *args: asked.append(args) or original(*args))
    polish(network, layers, Plan({"stem": LayerPlan("svd", (4,), 0.0)}), x.split(15))
    (_, weight, *grams), = asked
    assert torch.equal(weight[0], network.stem.weight.flatten(1))
    for found, part in zip(grams, (x[:90], x[90:]), strict=True):
        rows = input_rows(network.stem, part)
        torch.testing.assert_close(found, rows.mT @ rows / rows.shape[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shrinkage", [Shrinkage(0.9999), Shrinkage(0.0, 0.9999), Shrinkage(damping=1e4)])
def test_a_matrix_shrunk_to_its_diagonal_leaves_the_weight_as_the_target(network, layers, x, monkeypatch, shrinkage):
    """Correlations alone tell what an input that a compressed layer spoiled is good for."""
    monkeypatch.setattr(module, "best_shrinkage", lambda *_: shrinkage)
    plan = Plan({"stem": LayerPlan(density=0.2), "head": LayerPlan(density=0.5)})
    found = polish(network, layers, plan, x.chunk(BATCHES)).fits["head"]
    kept = network.head.weight.detach()[None][found.mask]
    torch.testing.assert_close(found.sparse[found.mask], kept, rtol=0.05, atol=0.02)


def test_what_is_found_is_what_the_plan_says(polished, plan, layers):
    assert polished.fits.keys() == plan.layers.keys()
    for spec in (s for s in layers if s.name in plan.layers):
        fit = polished.fits[spec.name]
        assert (fit.layer, fit.plan, int(fit.mask.sum())) == (spec, plan[spec.name], plan[spec.name].kept(spec))
    biases = {f"{name}.bias" for name in plan.layers if name != "stem"}
    assert polished.tensors.keys() == {"norm.running_mean", "norm.running_var"} | biases


def test_biases_keep_the_mean_of_every_layers_output(small, network, plan, x):
    """The mean over the examples fitted to, each layer's inputs being those of the finished model."""
    names = [name for name in plan.layers if name != "stem"]
    dense, ours = seen(copy.deepcopy(network), x, "outputs", names), seen(small, x, "outputs", names)
    for name in names:
        torch.testing.assert_close(*(y[name].transpose(0, 1).flatten(1).mean(1) for y in (ours, dense)), rtol=1e-3, atol=1e-3)


def test_batchnorm_statistics_move_as_the_finished_models_inputs_differ(small, network, x):
    (dense_mean, dense_var), (mean, var) = (
        (channels.mean(1), channels.var(1))
        for channels in (seen(m, x, "inputs", ["norm"])["norm"].transpose(0, 1).flatten(1) for m in (copy.deepcopy(network), small))
    )
    assert not torch.allclose(small.norm.running_mean, network.norm.running_mean, atol=1e-3)
    torch.testing.assert_close(small.norm.running_mean, network.norm.running_mean + mean - dense_mean, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(small.norm.running_var, network.norm.running_var * var / dense_var, rtol=1e-3, atol=1e-4)


def test_the_dense_model_is_left_alone(network, layers, plan, x, left_alone):
    with left_alone(network):
        polish(network, layers, plan, x.chunk(BATCHES))


def test_the_number_of_batches_changes_nothing_but_rounding(network, layers, x, error, built):
    """As long as the last quarter of them is the same examples."""
    plan = Plan({"stem": LayerPlan("svd", (6,), 0.0), "pointwise": LayerPlan("svd", (4,), 0.0), "head": LayerPlan("svd", (2,), 0.0)})
    few, many = (polish(network, layers, plan, x.chunk(n)) for n in (4, 24))
    for name in ("stem", "pointwise"):  # the head has as many inputs as there are examples, so its weights amplify rounding
        one, other = few.fits[name].effective(), many.fits[name].effective()
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4 * float(one.abs().max()))
    one, other = (built(network, layers, plan, found) for found in (few, many))
    assert error(one, other, x) < 1e-4 * error(one, network, x)


def test_outputs_are_weighed_by_what_the_dense_network_makes_of_them(network, layers, x, monkeypatch):
    def of_the_first(model, specs, batches, task):
        assert model is network
        assert sum(map(len, batches)) == len(x)
        return {spec.name: torch.tensor([1e4] + [1.0] * (spec.rows - 1)).view(1, -1, 1) for spec in specs}

    def share_of_the_first():
        mask = polish(network, layers, Plan({"head": LayerPlan(density=0.3)}), x.chunk(BATCHES)).fits["head"].mask
        return float(mask[0, 0].float().mean())

    before = share_of_the_first()
    monkeypatch.setattr("lrsearch.train.polish.importances", of_the_first)
    assert before < 0.6
    assert share_of_the_first() > 0.9


@pytest.mark.parametrize("batches", [1, 2, 3])
def test_few_batches_are_enough(network, layers, plan, tiny_data, x, batches, error, built, unpolished):
    found = polish(network, layers, plan, x.split(-(-120 // batches) - 7 * (batches > 1))[:batches])
    before = error(unpolished(network, layers, plan, x), network, tiny_data[0][120:])
    assert error(built(network, layers, plan, found), network, tiny_data[0][120:]) < 0.8 * before


def test_a_plan_that_touches_nothing_moves_nothing(network, layers, x):
    found = polish(network, layers, Plan(), x.chunk(BATCHES))
    assert found.fits == {}
    for name, tensor in found.tensors.items():
        torch.testing.assert_close(tensor, network.get_buffer(name))


def test_batches_whose_shapes_vary_count_with_all_their_examples():
    model, cap = nn.Conv2d(3, 4, 3), 12 * 3 * 4 * 3 * 10 * 10  # bytes of twelve examples
    same, varying = torch.randn(40, 3, 10, 10), [(torch.randn(4, 3, 10, 10 - i % 2), torch.zeros(4)) for i in range(10)]
    for given in ((same, None), DataLoader(varying, batch_size=None)):
        assert sum(map(examples_in, polish_batches(model, Examples(given, "calibration"), 4, cap=cap))) == 12


def test_the_examples_that_fit_are_three_times_the_largest_input_each(left_alone):
    model, x = nn.Sequential(nn.Linear(10, 100), nn.ReLU(), nn.Linear(100, 5)), torch.randn(1, 10)
    with left_alone(model):
        assert examples_that_fit(model, x, cap=12 * 1200 + 1199) == 12
        assert examples_that_fit(model.double(), x.double(), cap=12 * 1200) == 6
        model.float()
    assert examples_that_fit(model, x, cap=10) == 1
