"""A folder may name models of timm, with plain settings; no other code, no file, no address."""

import sys

import pytest
import timm
import torch

from lrsearch.errors import ArtifactError
from lrsearch.spec.config import ModelConfig
from lrsearch.task.architecture import build_architecture


def test_a_model_of_timm_is_built_without_its_values(tmp_path, monkeypatch):
    monkeypatch.setattr(timm.models._builder, "load_pretrained", lambda *_, **__: pytest.fail("values were loaded"))
    args = {"num_classes": 7, "act_layer": "silu", "drop_path_rate": 0.1, "block_args": None}
    config = ModelConfig(timm="test_resnet", args=args, pretrained=True, checkpoint=tmp_path / "absent.pt")
    model = build_architecture(config, "plan.json")
    assert not model.training
    assert model.get_classifier().out_features == 7
    assert any(isinstance(m, torch.nn.SiLU) for m in model.modules())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("checkpoint_path", "weights.pt"), ("pretrained", True), ("pretrained_cfg", "a1_in1k"), ("pretrained_cfg_overlay", "x"),
        ("cache_dir", "here"), ("pretrained_strict", False), ("act_layer", "../silu"), ("norm_layer", "os:system"),
        ("out_indices", [0, "/etc/passwd"]), ("block_args", {"file": "w.pt"}), ("weights_file", "w.pt"), ("pre trained", 1),
    ],
)
def test_arguments_that_are_more_than_settings_are_refused_before_anything_is_built(monkeypatch, key, value):
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("it was built"))
    with pytest.raises(ArtifactError, match=rf"plan\.json: model\.args\.{key}: only plain settings may come from a folder.*Pass base="):
        build_architecture(ModelConfig(timm="test_resnet", args={key: value}), "plan.json")


@pytest.mark.parametrize("name", ["hf-hub:evil/net", "local-dir:/tmp/net", "hf_hub:evil/net", "resnet_nope", "../resnet18", ""])
def test_what_is_no_name_in_timm_is_refused(name):
    with pytest.raises(ArtifactError, match="must name a model of timm"):
        build_architecture(ModelConfig(timm=name), "plan.json")


def test_arguments_that_timm_does_not_take_are_one_clear_error():
    with pytest.raises(ArtifactError, match=r"plan\.json: model: timm must be able to build the model"):
        build_architecture(ModelConfig(timm="test_resnet", args={"wings": 2}), "plan.json")


def test_a_dotted_path_is_refused_without_an_import():
    with pytest.raises(ArtifactError, match=r"model\.call: a folder may not say which code runs; got antigravity:fly\. Pass base="):
        build_architecture(ModelConfig(call="antigravity:fly"), "plan.json")
    assert "antigravity" not in sys.modules
