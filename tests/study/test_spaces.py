"""Studies over every format and pattern, and over split and weight-standardised layers, from end to end."""

import pytest
import torch
from timm.layers import ScaledStdConv2d
from torch import nn

import lrsearch
from lrsearch.compress import artifact
from lrsearch.errors import ConfigError
from lrsearch.spec.formats import FORMATS
from lrsearch.spec.space import Range, Rule, Space


def one(value) -> Range:
    return Range(min=value, max=value, steps=1)


RULE = Rule(density=one(0.4), rank_ratio=one(0.25), combined_rank_ratio=one(0.25), combined_density=one(0.1))


def score_by_hand(model, data):
    with torch.no_grad():
        return float((model(data[0]).argmax(1) == data[1]).float().mean())


def used(result) -> tuple[set[str], set[str]]:
    """Formats and patterns in the plans of the front."""
    plans = [artifact.read_plan(result.folder / model)[0] for model in result.front.model]
    layers = [p for plan in plans for p in plan.layers.values()]
    return {p.format for p in layers}, {p.pattern for p in layers}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_study_of_one_format(job, name):
    rule = RULE.model_copy(update={"formats": (name,), "families": ("low-rank", "low-rank+sparse")})
    rest = Rule(families=("sparse",), density=Range(min=0.1, max=0.8, steps=3))
    rules = (rule.model_copy(update={"layers": ("grouped", "stem")}), rest)
    result = lrsearch.search(**{**job, "space": Space(rules=rules), "objectives": ("kl", "macs"), "budget": lrsearch.Budget(macs=0.95)})
    assert name in used(result)[0]
    for index in result.front.index:
        assert score_by_hand(result.load(index), job["score"]) == pytest.approx(result.front.metric[index])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["row", "column", "2:4", "block4x1"])
def test_a_study_of_one_pattern(job, name):
    layers = ("pointwise", "grouped", "head")
    rule = RULE.model_copy(update={"patterns": (name,), "families": ("sparse", "low-rank+sparse"), "layers": layers})
    result = lrsearch.search(**{**job, "space": Space(rules=(rule,)), "budget": lrsearch.Budget(params=0.97)})
    assert used(result)[1] == {name}
    for index in result.front.index:
        assert score_by_hand(result.load(index), job["score"]) == pytest.approx(result.front.metric[index])


@pytest.fixture
def fused(job) -> dict:
    """A study of a network with a layer of three parts."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=3), nn.Flatten(), nn.Linear(128, 24), nn.ReLU(), nn.Linear(24, 4))
    space = Space(split=("2",), rules=(RULE.model_copy(update={"layers": ("2.q", "2.v")}),))
    return {**job, "model": model, "space": space, "budget": lrsearch.Budget(params=0.8)}


def test_the_parts_of_a_split_layer_have_plans_of_their_own(fused, left_alone):
    with left_alone(fused["model"]):
        result = lrsearch.search(**fused)
        plans = [artifact.read_plan(result.folder / model)[0] for model in result.front.model]
    names = {name for plan in plans for name in plan.layers}
    assert names
    assert names <= {"2.q", "2.v"}
    for index, model in result.front.model.items():
        for small in (result.load(index), lrsearch.load(result.folder / model, base=fused["model"])):
            assert score_by_hand(small, fused["score"]) == pytest.approx(result.front.metric[index])


def test_a_split_pattern_that_fits_no_layer_is_refused(fused):
    with pytest.raises(ConfigError, match=r"^space\.split.*nothing\*"):
        lrsearch.search(**{**fused, "space": Space(split=("nothing*",))})


def test_a_weight_standardised_layer_has_a_plan_and_is_loaded_on_the_model_as_it_was(job, left_alone):
    model = nn.Sequential(ScaledStdConv2d(3, 24, 3, stride=3, padding=0), nn.ReLU(), nn.Flatten(), nn.Linear(24 * 16, 4)).eval()
    space = Space(rules=(RULE.model_copy(update={"layers": ("0",)}),))
    with left_alone(model):
        result = lrsearch.search(**{**job, "model": model, "space": space, "budget": lrsearch.Budget(params=0.9)})
        path = result.folder / result.front.model[0]
        assert artifact.read_plan(path)[0].layers.keys() == {"0"}
        assert score_by_hand(lrsearch.load(path, base=model), job["score"]) == pytest.approx(result.front.metric[0])
        lrsearch.polish(path, model=model, calibration=job["calibration"])
