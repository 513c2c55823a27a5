import copy
import json

import pytest
import torch
from timm.layers import Conv2dSame, ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.nfnet import NfCfg, NormFreeNet
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from lrsearch.compress import artifact
from lrsearch.compress.apply import compress
from lrsearch.compress.inventory import inventory
from lrsearch.compress.prepare import prepare
from lrsearch.compress.storage import Storage
from lrsearch.errors import ConfigError
from lrsearch.measure.count import cost_model, dense_macs
from lrsearch.spec.plan import LayerPlan, Plan

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def convolutions():
    return nn.Sequential(
        StdConv2d(3, 8, 3, stride=2, bias=True), nn.ReLU(), StdConv2dSame(8, 8, 3, stride=2), nn.ReLU(),
        ScaledStdConv2d(8, 12, 3, groups=2, dilation=2, gamma=1.7), nn.ReLU(), ScaledStdConv2dSame(12, 8, 5, stride=2, bias=False),
        nn.ReLU(), StdConv2dSame(8, 8, 3), nn.Flatten(), nn.LazyLinear(4),
    )  # fmt: skip


def nfnet():
    config = NfCfg(depths=(1, 1), channels=(16, 24), stem_type="3x3", group_size=8, bottle_ratio=0.5, num_features=0, act_layer="relu")
    return NormFreeNet(config, num_classes=4)


def beit():
    return Beit(32, 16, num_classes=4, embed_dim=24, depth=2, num_heads=2, init_values=None)


def eva():
    return Eva(32, 16, num_classes=4, embed_dim=24, depth=2, num_heads=2, qkv_fused=True)


def swin_v2():
    return SwinTransformerV2(32, 4, num_classes=4, embed_dim=12, depths=(2, 1), num_heads=(1, 2), window_size=4)


MODELS = {make.__name__: make for make in (convolutions, nfnet, beit, eva, swin_v2)}


@pytest.fixture(params=MODELS)
def model(request):
    """A model with something to prepare; its parameters are noise, so that each of them counts."""
    made = MODELS[request.param]().eval()
    made(X)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return made


def test_the_output_stays_the_same_and_the_model_as_it_was(model, left_alone):
    with left_alone(model):
        ready = prepare(model)
        assert ready is not model
        torch.testing.assert_close(ready(X), model(X), rtol=1e-5, atol=1e-5)
        ready(X).sum().backward()
        with torch.no_grad():
            for p in ready.parameters():
                p.add_(1)


def test_every_layer_can_be_compressed_that_was_refused(model):
    before, after = inventory(model, X), inventory(prepare(model), X)
    assert before.refused
    tables = {name for name in after.refused if name in dict(model.named_parameters())}
    assert after.refused.keys() == tables
    assert {spec.name for spec in after.layers} == {spec.name for spec in before.layers} | before.refused.keys() - tables


def test_costs_are_exact_and_a_saved_model_needs_the_model_as_it_was_alone(model, white_fits, tmp_path, left_alone):
    ready = prepare(model)
    layers = inventory(ready, X).layers
    plan = Plan({spec.name: LayerPlan(density=0.5) for spec in layers})
    small = compress(ready, layers, plan, white_fits(ready, layers, plan))
    artifact.save(small, plan, tmp_path / "model", {}, Storage(layers))
    cost, size = cost_model(ready, layers, X)(plan), (tmp_path / "model" / artifact.WEIGHTS).stat().st_size
    assert (cost.params, cost.weight_bytes, cost.macs) == (sum(p.numel() for p in small.parameters()), size, dense_macs(small, X))
    with left_alone(model):
        assert torch.equal(artifact.load(tmp_path / "model", model)(X), small(X))


def test_what_needs_nothing_is_returned_itself(tiny_model):
    assert prepare(tiny_model) is tiny_model
    unbiased = Beit(32, 16, num_classes=4, embed_dim=24, depth=1, num_heads=2, qkv_bias=False)
    assert prepare(unbiased) is unbiased
    ready = prepare(convolutions().eval())
    assert prepare(ready) is ready


def test_convolutions_become_plain_and_keep_their_hyper_parameters():
    model = convolutions().train()
    model[0].requires_grad_(False)
    ready = prepare(model)
    assert [type(m) for m in ready if isinstance(m, nn.Conv2d)] == [nn.Conv2d, Conv2dSame, nn.Conv2d, Conv2dSame, nn.Conv2d]
    assert not ready[0].weight.requires_grad
    assert all(p.requires_grad for p in ready[4].parameters())
    assert {name for name, _ in ready[4].named_parameters()} == {"weight", "bias"}
    assert (ready[4].groups, ready[4].dilation, ready[4].training) == (2, (2, 2), True)
    assert torch.equal(ready[4].bias, model[4].bias)


def test_a_convolution_used_twice_stays_one():
    conv = StdConv2d(3, 3, 3)
    ready = prepare(nn.ModuleList([conv, nn.Sequential(conv)]))
    assert ready[0] is ready[1][0]
    assert type(ready[0]) is nn.Conv2d


def test_forwards_of_their_own_and_parametrised_weights_are_left():
    class Doubled(StdConv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    class Halved(nn.Module):
        def forward(self, weight):
            return weight / 2

    model = nn.Sequential(Doubled(3, 8, 3), nn.Linear(8, 8))
    parametrize.register_parametrization(model[1], "weight", Halved())
    assert prepare(model) is model


def pruned(layer):
    return prune.l1_unstructured(layer, "weight", 0.5)


FOLDED = {
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(6, 8)),
    "weight norm of a convolution": lambda: parametrizations.weight_norm(nn.Conv2d(6, 8, 1)),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(6, 8)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(6, 8)),
    "old weight norm": lambda: torch.nn.utils.weight_norm(nn.Linear(6, 8)),
    "old weight norm of a transposed convolution": lambda: torch.nn.utils.weight_norm(nn.ConvTranspose2d(6, 8, 2)),
    "old spectral norm": lambda: torch.nn.utils.spectral_norm(nn.Linear(6, 8)),
    "pruning mask": lambda: pruned(nn.Linear(6, 8)),
    "weight norm of a standardised convolution": lambda: parametrizations.weight_norm(StdConv2d(6, 8, 1)),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", FOLDED)
def test_computed_weights_become_plain(name, mode):
    model = nn.Sequential(FOLDED[name]()).train(mode)
    x = torch.randn(4, 6, 3, 6)[..., :6] if isinstance(model[0], nn.Linear) else torch.randn(4, 6, 3, 6)
    model(x).sum().backward()  # leaves computed tensors on the old ones, which torch does not copy
    before = {k: v.clone() for k, v in model.state_dict().items()}
    ready = prepare(model)
    assert {n for n, _ in ready.named_parameters()} == {"0.weight", "0.bias"} & {*before, "0.weight"}
    assert ready[0].training is mode
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    torch.testing.assert_close(ready.eval()(x), model.eval()(x))
    assert [spec.name for spec in inventory(ready, x).layers] == ["0"]


def test_a_model_that_keeps_its_last_features_is_copied(tiny_model, tiny_data):
    tiny_model.features = [tiny_model(tiny_data[0])]
    ready = prepare(tiny_model)
    assert torch.equal(copy.deepcopy(ready)(tiny_data[0]), tiny_model(tiny_data[0]))


def test_gpt2_projections_become_linear():
    utils = pytest.importorskip("transformers.pytorch_utils")
    model, x = nn.Sequential(utils.Conv1D(8, 6)), torch.randn(2, 5, 6)
    ready = prepare(model)
    torch.testing.assert_close(ready(x), model(x))
    assert inventory(ready, x).layers[0].weight_shape == (8, 6)


def test_layers_are_split_too():
    model = eva().eval()
    ready = prepare(model, ["*.qkv"])
    torch.testing.assert_close(ready(X), model(X), rtol=1e-5, atol=1e-5)
    assert {"blocks.0.attn.qkv.q", "blocks.1.attn.qkv.v"} <= {spec.name for spec in inventory(ready, X).layers}
    with pytest.raises(ConfigError, match=r"^space\.split"):
        prepare(model, ["*.kv"])


def test_a_saved_model_split_and_prepared_is_loaded(tmp_path, white_fits):
    model = beit().eval()
    ready = prepare(model, ["blocks.0.attn.qkv"])
    layers = inventory(ready, X).layers
    plan = Plan({"blocks.0.attn.qkv.k": LayerPlan("svd", (2,), 0.0), "blocks.1.attn.qkv": LayerPlan("svd", (2,), 0.3)})
    small = compress(ready, layers, plan, white_fits(ready, layers, plan))
    artifact.save(small, plan, tmp_path / "model", {"split": ["blocks.0.attn.qkv"]})
    assert json.loads((tmp_path / "model" / "plan.json").read_text())["split"] == ["blocks.0.attn.qkv"]
    assert torch.equal(artifact.load(tmp_path / "model", model)(X), small(X))
