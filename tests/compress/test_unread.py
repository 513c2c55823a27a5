"""Outputs behind columns that their only reader drops are neither computed nor stored, and cost nothing."""

import copy
import json

import onnx
import onnxruntime
import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from lrsearch.compress import artifact
from lrsearch.compress.apply import compress
from lrsearch.compress.fit import Decomposition, FitProblem
from lrsearch.compress.inventory import inventory
from lrsearch.compress.matricize import to_matrix
from lrsearch.compress.storage import Storage
from lrsearch.deploy.channel_flow import feeds, with_readers
from lrsearch.deploy.deployed import deployed
from lrsearch.deploy.onnx_export import exported
from lrsearch.errors import ArtifactError
from lrsearch.measure.count import cost_model, dense_macs, recount
from lrsearch.spec.plan import LayerPlan, Plan
from lrsearch.spec.unread import followers

COLUMNS = LayerPlan(density=0.3, pattern="column")
FEEDING = [
    LayerPlan(), LayerPlan("svd", (4,), 0.0), LayerPlan("cp", (5,), 0.0), LayerPlan("tucker2", (6, 4), 0.0),
    LayerPlan("spatial-svd", (5,), 0.0), LayerPlan("tt", (4, 6, 7), 0.0), LayerPlan(density=0.5, pattern="column"),
]  # fmt: skip
WHOLE = [LayerPlan(density=0.4), LayerPlan(density=0.5, pattern="row"), LayerPlan("svd", (3,), 0.3, "column")]  # not known by shapes alone


class Block(nn.Module):
    """(n, 8, 9, 9) → (n, 8, 5, 5): a convolution, a depthwise one, and a last one that alone reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.norm, self.act = nn.Conv2d(8, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU6(inplace=True)
        self.depthwise, self.project = nn.Conv2d(24, 24, 3, stride=2, padding=1, groups=24), nn.Conv2d(24, 8, 1)

    def forward(self, x):
        return self.project(self.depthwise(self.act(self.norm(self.expand(x)))))


class Timm(Block):
    """The same with timm's norms, which bear the activation."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.act = BatchNormAct2d(24), nn.Identity()


class Perceptron(nn.Module):
    """(n, 6, 8) → (n, 6, 4): a chain of three linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(8, 32), nn.Linear(32, 16), nn.Linear(16, 4)

    def forward(self, x):
        return self.third(self.second(self.first(x).relu()).relu())


@pytest.fixture
def block():
    torch.manual_seed(0)
    model = Block().eval()
    nn.init.uniform_(model.norm.weight, 0.5, 2)
    nn.init.normal_(model.norm.bias)
    return model, torch.randn(2, 8, 9, 9)


@pytest.fixture
def perceptron():
    torch.manual_seed(0)
    return Perceptron().eval(), torch.randn(2, 6, 8)


def with_readers_of(model, x):
    whole = deployed(model, x)
    return with_readers(inventory(model, x).layers, feeds(whole, x))


def fitted(model, layers, plan) -> dict[str, Decomposition]:
    def problem(layer):
        grams = torch.eye(layer.columns).expand(layer.groups, -1, -1)
        return FitProblem(layer, to_matrix(model.get_submodule(layer.name).weight.detach(), layer), grams)

    return {layer.name: problem(layer).fit(plan[layer.name]) for layer in layers if layer.name in plan.layers}


def test_layers_know_what_reads_them(block, perceptron):
    assert {layer.name: layer.read_by for layer in with_readers_of(*block)} == {"expand": "project", "depthwise": "project", "project": ""}
    assert [layer.read_by for layer in with_readers_of(Timm().eval(), block[1])] == ["project", "project", ""]
    assert {layer.name: layer.read_by for layer in with_readers_of(*perceptron)} == {"first": "second", "second": "third", "third": ""}


@pytest.mark.parametrize("values", ["float32", "float16", "int8"])
@pytest.mark.parametrize("feeding", [*FEEDING, *WHOLE], ids=str)
@torch.no_grad()
def test_costs_are_those_of_the_model_and_of_its_file_and_outputs_are_the_same(block, tmp_path, feeding, values):
    model, x = block
    layers, plan = with_readers_of(model, x), Plan({"expand": feeding, "project": COLUMNS})
    storage, costs = Storage(layers, values), cost_model(model, layers, x, values)
    storage.round_dense(model, besides=plan.layers)
    fits = storage.rounded(fitted(model, layers, plan))
    small = compress(model, layers, plan, fits)
    torch.testing.assert_close(small(x), compress(model, inventory(model, x).layers, plan, fits)(x))
    cost, counted = costs(plan), recount(small, x)
    assert (counted.params, counted.macs, counted.nonzero_macs) == (cost.params, cost.macs, cost.nonzero_macs)
    artifact.save(small, plan, tmp_path / "model", {}, storage)
    assert (tmp_path / "model" / artifact.WEIGHTS).stat().st_size == cost.weight_bytes
    again = artifact.load(tmp_path / "model", model)
    assert torch.equal(again(x), small(x))
    assert artifact.read_storage(tmp_path / "model", model).pack(again).keys() == storage.pack(small).keys()
    torch.testing.assert_close(artifact.load_merged(tmp_path / "model", model)(x), small(x), rtol=1e-4, atol=1e-4)
    fast = deployed(again, x)
    torch.testing.assert_close(fast(x), small(x), rtol=1e-4, atol=1e-5)
    whole = sum((costs.layer(layer, plan[layer.name]) for layer in layers), costs.fixed)
    assert (cost.macs < whole.macs, cost.params < whole.params, cost.weight_bytes < whole.weight_bytes) == (True, True, True)
    if feeding in FEEDING:  # 7 of 24 channels are read, topped to 8
        one_more = sum(layer.positions * n for layer, n in zip(layers, row_macs(feeding), strict=True))
        assert dense_macs(fast, x) - cost.macs == one_more


def row_macs(feeding):
    """Multiply-accumulates at a position of one more channel in each layer: of its last stage, its kernel, its outputs."""
    last = {"dense": 72 if feeding.untouched else 36, "svd": 4, "cp": 5, "tucker2": 6, "spatial-svd": 15, "tt": 7}
    return last[feeding.format], 9, 8


@torch.no_grad()
def test_layers_in_a_chain_leave_out_rows_and_columns(perceptron, tmp_path):
    model, x = perceptron
    layers, plan = with_readers_of(model, x), Plan({"second": LayerPlan(density=0.5, pattern="column"), "third": COLUMNS})
    small = compress(model, layers, plan, fitted(model, layers, plan))
    assert [sum(p.numel() for n, p in m.named_parameters() if n != "bias") for m in small.children()] == [16 * 8, 16 * 5, 5 * 4]
    cost, storage = cost_model(model, layers, x)(plan), Storage(layers)
    assert (recount(small, x).macs, recount(small, x).params) == (cost.macs, cost.params)
    artifact.save(small, plan, tmp_path / "model", {}, storage)
    assert torch.equal(artifact.load(tmp_path / "model", model)(x), small(x))


def test_rows_are_left_out_only_beside_dropped_columns(block):
    model, x = block
    specs = {layer.name: layer for layer in with_readers_of(model, x)}
    assert followers(specs, Plan({"project": COLUMNS})) == {"expand": "project", "depthwise": "project"}
    assert followers(specs, Plan({"project": LayerPlan(density=0.3)})) == {}
    assert followers(specs, Plan({"project": COLUMNS, "depthwise": LayerPlan(density=0.5)})) == {"expand": "project"}


@pytest.mark.parametrize("said", [
    {"expand": "expand"}, {"expand": "nobody"}, {"nobody": "project"}, {"expand": ["project"]}, ["expand"], {"project": "expand"},
    {"expand": "depthwise", "depthwise": "expand"}, {},
], ids=str)  # fmt: skip
def test_a_folder_that_lies_about_readers_is_refused_in_one_line(block, tmp_path, said):
    model, x = block
    layers, plan = with_readers_of(model, x), Plan({"project": COLUMNS})
    artifact.save(compress(model, layers, plan, fitted(model, layers, plan)), plan, tmp_path / "model", {}, Storage(layers))
    path = tmp_path / "model" / artifact.PLAN
    about = json.loads(path.read_text())
    assert about["storage"]["read_by"] == {"expand": "project", "depthwise": "project"}
    about["storage"]["read_by"] = said
    path.write_text(json.dumps(about))
    with pytest.raises(ArtifactError):
        artifact.load(tmp_path / "model", model)


class Residual(nn.Module):
    """(n, 8, 9, 9) → (n, 5): a block that a stream goes around, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.Conv2d(16, 8, 3, padding=1, bias=False)
        self.norms, self.head = nn.ModuleList([nn.BatchNorm2d(16), nn.BatchNorm2d(8)]), nn.Linear(8, 5)

    def forward(self, x):
        y = self.norms[1](self.second(self.norms[0](self.first(x)).relu()))
        y += x
        return self.head(y.relu().mean((2, 3)))


@pytest.mark.parametrize("feeding", [LayerPlan(), LayerPlan("svd", (3,), 0.0), LayerPlan(density=0.5, pattern="column")], ids=str)
@pytest.mark.parametrize("values", ["float32", "int8"])
@torch.no_grad()
def test_a_layer_of_which_nothing_is_left_skips_its_block(tmp_path, feeding, values):
    torch.manual_seed(0)
    model, x = Residual().eval(), torch.randn(2, 8, 9, 9)
    nn.init.normal_(model.norms[1].bias)
    nn.init.normal_(model.norms[1].running_mean)
    layers, plan = with_readers_of(model, x), Plan({"first": feeding, "second": LayerPlan(density=0.0)})
    costs, storage = cost_model(model, layers, x, values), Storage(layers, values)
    storage.round_dense(model, besides=plan.layers)
    small = compress(model, layers, plan, storage.rounded(fitted(model, layers, plan)))
    expected = copy.deepcopy(model)
    expected.second.weight.zero_()
    torch.testing.assert_close(small(x), expected(x))
    cost, counted = costs(plan), recount(small, x)
    assert cost.macs == counted.macs == 5 * 8
    assert cost.params == counted.params
    if feeding.untouched:
        assert cost.params == costs.dense.params - 2 * 16 * 8 * 9
    artifact.save(small, plan, tmp_path / "model", {}, storage)
    assert (tmp_path / "model" / artifact.WEIGHTS).stat().st_size == cost.weight_bytes
    again = artifact.load(tmp_path / "model", model)
    assert torch.equal(again(x), small(x))
    fast = deployed(again, x)
    torch.testing.assert_close(fast(x), small(x), rtol=1e-4, atol=1e-5)
    assert dense_macs(fast, x) == 5 * 8
    written = onnx.load_from_string(exported(fast, x))
    assert not [node for node in written.graph.node if node.op_type == "Conv"]
    run = onnxruntime.InferenceSession(written.SerializeToString()).run(None, {"input": x.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(run), small(x), rtol=1e-4, atol=1e-5)
