import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lrsearch.compress import artifact
from lrsearch.compress.apply import compress
from lrsearch.compress.inventory import inventory
from lrsearch.compress.storage import Storage
from lrsearch.measure.count import cost_model, dense_macs
from lrsearch.spec.cost import Cost
from lrsearch.spec.plan import LayerPlan, Plan
from lrsearch.spec.storage import header_bytes

PLANS = [
    Plan(),
    Plan({"stem": LayerPlan("svd", (3,), 0.1), "depthwise": LayerPlan(density=0.51), "grouped": LayerPlan(density=0.03)}),
    Plan({"pointwise": LayerPlan("svd", (4,), 0.0), "head": LayerPlan(density=0.333)}),
    Plan({
        "stem": LayerPlan(density=0.2), "depthwise": LayerPlan(density=0.3), "grouped": LayerPlan(density=0.4),
        "pointwise": LayerPlan("svd", (1,), 0.07), "head": LayerPlan("svd", (2,), 0.0),
    }),
    Plan({"head": LayerPlan("svd", (1,), 0.001)}),  # the density rounds to nothing
    Plan({
        "stem": LayerPlan("spatial-svd", (3,), 0.2, "row"), "grouped": LayerPlan("tucker2", (2, 3), 0.1),
        "head": LayerPlan("tt", (2, 2), 0.0),
    }),
    Plan({
        "stem": LayerPlan("cp", (4,), 0.0), "grouped": LayerPlan("cp", (2,), 0.5, "2:4"), "pointwise": LayerPlan("tt", (3, 2), 0.0),
        "head": LayerPlan(density=0.3, pattern="column"),
    }),
    Plan({
        "stem": LayerPlan("tt", (2, 2, 3), 0.0), "grouped": LayerPlan("spatial-svd", (2,), 0.2, "block2x2"),
        "pointwise": LayerPlan(density=0.6, pattern="row"), "head": LayerPlan(density=0.5, pattern="block4x4"),
    }),
    Plan({"stem": LayerPlan("tucker2", (3, 2), 0.5, "column"), "grouped": LayerPlan("tt", (2, 3, 2), 0.0)}),
]  # fmt: skip
plans = pytest.mark.parametrize("plan", PLANS, ids=lambda p: p.fingerprint)


@pytest.fixture
def costs(tiny_model, tiny_data, layers):
    return cost_model(tiny_model, layers, tiny_data[0][:2])


def flops(model, x):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops()


@pytest.mark.parametrize("values", ["float32", "float16", "bfloat16", "int8"])
@plans
def test_predicted_params_are_counted_and_bytes_are_the_size_of_the_file(tiny_model, tiny_data, layers, plan, values, tmp_path):
    small = compress(tiny_model, layers, plan)
    predicted = cost_model(tiny_model, layers, tiny_data[0][:2], values)(plan)
    assert predicted.params == sum(p.numel() for p in small.parameters())
    artifact.save(small, plan, tmp_path / "model", {}, Storage(layers, values))
    assert predicted.weight_bytes == (tmp_path / "model" / artifact.WEIGHTS).stat().st_size


@plans
def test_predicted_macs_are_those_torch_counts(tiny_model, tiny_data, layers, costs, plan):
    small = compress(tiny_model, layers, plan)
    assert costs(plan).macs * 2 * 5 == flops(small, tiny_data[0][:5])


def test_dense_costs_by_hand(costs):
    params = 16 * 27 + 32 + 16 * 9 + 16 + 16 * 36 + 16 + 24 * 16 + 24 + 24 * 4 + 4
    macs = 36 * (16 * 27 + 16 * 9 + 16 * 36 + 24 * 16) + 24 * 4
    statistics = 4 * 32 + 8  # mean, variance, and a counter
    file = 4 * params + statistics + header_bytes(["stem", "depthwise", "grouped", "pointwise", "head"])
    assert costs.dense == Cost(params, macs, macs, file)


def test_nonzero_macs_skip_the_zeros_of_s(costs):
    dense, sparse = costs.dense, costs(Plan({"stem": LayerPlan(density=0.25)}))
    assert sparse.macs == dense.macs
    assert sparse.nonzero_macs == dense.nonzero_macs - 36 * 324


def test_ratios_refer_to_the_model_as_it_was_brought(tiny_model, tiny_data, layers, costs):
    model = cost_model(tiny_model, layers, tiny_data[0][:2], "int8")
    assert model.dense == costs.dense == costs(Plan())
    assert model(Plan()).weight_bytes < 0.5 * costs.dense.weight_bytes


def test_costs_of_a_layer_called_twice_and_of_half_precision(tmp_path):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix, self.head = nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.head(self.mix(self.mix(x)))

    model, x = Twice().to(torch.bfloat16), torch.randn(4, 3, 6, dtype=torch.bfloat16)
    layers, plan = inventory(model, x).layers, Plan({"mix": LayerPlan("svd", (1,), 0.5)})
    predicted, small = cost_model(model, layers, x)(plan), compress(model, layers, plan)
    artifact.save(small, plan, tmp_path / "model", {}, Storage(layers))
    assert predicted.weight_bytes == (tmp_path / "model" / artifact.WEIGHTS).stat().st_size
    assert predicted.macs * 2 * 4 == flops(small, x)


def test_counting_leaves_the_modes_alone(tiny_model, tiny_data):
    tiny_model.train()
    before = tiny_model.norm.running_mean.clone()
    dense_macs(tiny_model, tiny_data[0][:2])
    assert all(m.training for m in tiny_model.modules())
    assert torch.equal(tiny_model.norm.running_mean, before)


def test_counting_leaves_the_parameters_of_shared_modules_alone():
    shared = nn.Linear(4, 4)
    model = nn.ModuleList([nn.Sequential(shared, nn.ReLU()), nn.Sequential(shared, nn.Linear(4, 2))])
    model.forward = lambda x: model[1](model[0](x))
    model[1][1].weight.requires_grad_(False)
    before = dict(model.named_parameters(remove_duplicate=False))
    assert dense_macs(model, torch.zeros(1, 4)) == 2 * 16 + 8
    after = dict(model.named_parameters(remove_duplicate=False))
    assert all(after[name] is p for name, p in before.items())
    assert [p.requires_grad for p in after.values()] == [True] * 4 + [False, True]


def test_the_two_products_of_attention_are_counted():
    class Attention(nn.Module):
        def forward(self, x):
            return nn.functional.scaled_dot_product_attention(x, x, x)

    assert dense_macs(Attention(), torch.randn(2, 3, 5, 8)) == 2 * 3 * 5 * 5 * 8
