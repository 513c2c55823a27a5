"""What is saved comes back whole: values, factors, bias and mask."""

from dataclasses import replace

import pytest
import torch
from catalogue import build, compressed, each_group, inputs, random_fit, spec_of
from torch import nn

from lrsearch.compress import artifact
from lrsearch.compress.apply import compress
from lrsearch.compress.modules import compressed_layer
from lrsearch.compress.storage import Storage
from lrsearch.measure.count import cost_model
from lrsearch.spec.plan import Plan

ATOM = {"unstructured": 1, "2:4": 1, "4:8": 1, "block4x1": 4, "block2x2": 4}


class Beside(nn.Module):
    """Copies of one layer, each of which will have a plan of its own."""

    def __init__(self, name, count):
        super().__init__()
        self.layers = nn.ModuleList(build(name) for _ in range(count))

    def forward(self, x):
        return torch.stack([layer(x) for layer in self.layers])


def shapes_and_types(module):
    return {k: (v.shape, v.dtype) for k, v in module.state_dict().items()}


@each_group
@torch.no_grad()
def test_a_state_dict_fills_a_freshly_built_layer(cases):
    x = inputs(cases[0].layer)
    for case in cases:
        small, fresh = compressed(case), compressed_layer(build(case.layer), case.spec, case.plan).eval()
        assert shapes_and_types(fresh) == shapes_and_types(small), case
        assert not fresh.weight.any(), case
        fresh.load_state_dict(small.state_dict())
        assert torch.equal(fresh(x), small(x)), case
        assert torch.equal(fresh.weight, small.weight), case


@each_group
def test_the_mask_is_one_bit_per_value_block_column_or_row(cases):
    for case in cases:
        kept, state = case.plan.kept(case.spec), compressed(case).state_dict()
        if kept:
            atom = ATOM | {"column": case.spec.numel // case.spec.channels, "row": case.spec.columns}
            assert state["bitmask"].dtype == torch.uint8
            assert sum(byte.bit_count() for byte in state["bitmask"].tolist()) * atom[case.plan.pattern] == kept, case
            assert len(state["bitmask"]) == -(-case.spec.numel // atom[case.plan.pattern] // 8), case
        else:
            assert "bitmask" not in state, case


@pytest.mark.parametrize("values", ["float32", "float16", "bfloat16", "int8"])
@each_group
@torch.no_grad()
def test_a_file_has_the_size_predicted_and_gives_back_what_was_rounded(cases, values, tmp_path):
    name, x = cases[0].layer, inputs(cases[0].layer)
    base = Beside(name, len(cases) + 1)  # the last one stays dense
    before = {k: v.clone() for k, v in base.state_dict().items()}
    specs = [replace(spec_of(name), name=f"layers.{i}") for i in range(len(cases) + 1)]
    plan = Plan({spec.name: case.plan for spec, case in zip(specs, cases, strict=False)})
    storage = Storage(tuple(specs), values)
    fits = storage.rounded({spec.name: random_fit(spec, case.plan) for spec, case in zip(specs, cases, strict=False)})
    small = compress(base, specs, plan, fits)
    storage.round_dense(small, besides=plan.layers)
    artifact.save(small, plan, tmp_path / "model", {"about": "this"}, storage)
    assert cost_model(base, specs, x, values)(plan).weight_bytes == (tmp_path / "model" / artifact.WEIGHTS).stat().st_size
    again = artifact.load(tmp_path / "model", base)
    assert torch.equal(again(x), small(x))
    assert all(torch.equal(again.get_submodule(n).weight, small.get_submodule(n).weight) for n in (s.name for s in specs))
    assert artifact.read_storage(tmp_path / "model", base).values == values
    assert artifact.read_plan(tmp_path / "model")[0] == plan
    assert all(torch.equal(v, before[k]) for k, v in base.state_dict().items())
