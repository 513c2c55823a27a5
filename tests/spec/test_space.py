import pytest
from pydantic import ValidationError

from lrsearch.errors import ConfigError
from lrsearch.spec.cost import layer_cost
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.plan import LayerPlan
from lrsearch.spec.space import Range, Rule, Space

STEM = LayerSpec("stem.conv", "conv2d", (8, 3, 3, 3), 1, 100)
DEPTHWISE = LayerSpec("blocks.0.dw", "conv2d", (16, 1, 3, 3), 16, 100)
FC = LayerSpec("blocks.0.fc", "linear", (40, 20), 1, 1)
TINY = LayerSpec("head", "linear", (2, 2), 1, 1)  # rank 1 is as large as dense
LAYERS = (STEM, DEPTHWISE, FC, TINY)
QUARTER = Range(min=0.25, max=0.25, steps=1)


def only(density, **keys):
    return Rule(families=("sparse",), density=Range(min=density, max=density, steps=1), **keys)


def test_range_is_geometric_and_ends_where_it_says():
    assert Range(min=0.1, max=0.4, steps=3).values() == [0.1, 0.2, 0.4]
    assert Range(min=0.1, max=0.4, steps=1).values() == [0.4]


@pytest.mark.parametrize("keys", [(0.5, 0.4, 3), (0.0, 0.4, 3), (0.1, 1.1, 3), (0.1, 0.4, 0)])
def test_range_refuses(keys):
    with pytest.raises(ValidationError):
        Range(**dict(zip(("min", "max", "steps"), keys, strict=True)))


def test_menu_of_one_layer_by_hand():
    rule = Rule(
        density=Range(min=0.2, max=0.4, steps=2),
        rank_ratio=Range(min=0.1, max=0.2, steps=2),
        combined_rank_ratio=Range(min=0.05, max=0.1, steps=2),
        combined_density=Range(min=0.05, max=0.05, steps=1),
    )
    assert Space(rules=(rule,)).menus((FC,))["blocks.0.fc"] == [
        LayerPlan(),
        LayerPlan(density=0.2), LayerPlan(density=0.4),
        LayerPlan("svd", (2,), 0.0), LayerPlan("svd", (4,), 0.0),
        LayerPlan("svd", (1,), 0.05), LayerPlan("svd", (2,), 0.05),
    ]  # fmt: skip


def test_menu_of_formats_and_patterns_by_hand():
    rule = Rule(
        formats=("spatial-svd", "tucker2", "svd"), patterns=("2:4", "row"), density=Range(min=0.25, max=0.5, steps=2),
        rank_ratio=QUARTER, combined_rank_ratio=QUARTER, combined_density=QUARTER,
    )
    conv, fc = LayerSpec("conv", "conv2d", (8, 4, 3, 3), 1, 10), LayerSpec("fc", "linear", (20, 6), 1, 1)
    menus = Space(rules=(rule,)).menus((conv, fc))
    low_rank = [("spatial-svd", (3,)), ("tucker2", (2, 1)), ("svd", (2,))]
    assert menus["conv"] == [
        LayerPlan(), LayerPlan(density=0.5, pattern="2:4"), LayerPlan(density=0.25, pattern="row"), LayerPlan(density=0.5, pattern="row"),
        *(LayerPlan(name, rank, 0.0) for name, rank in low_rank),
        *(LayerPlan(name, rank, d, p) for name, rank in low_rank for d, p in ((0.5, "2:4"), (0.25, "row"))),
    ]  # fmt: skip
    # A linear layer has svd alone, and six inputs have no 2:4.
    assert menus["fc"] == [
        LayerPlan(), LayerPlan(density=0.25, pattern="row"), LayerPlan(density=0.5, pattern="row"),
        LayerPlan("svd", (2,), 0.0), LayerPlan("svd", (2,), 0.25, "row"),
    ]  # fmt: skip


def test_choices_that_come_to_the_same_are_offered_once():
    rule = Rule(families=("low-rank",), patterns=("unstructured", "row"), rank_ratio=Range(min=0.1, max=0.11, steps=3))
    assert Space(rules=(rule,)).menus((FC,))["blocks.0.fc"] == [LayerPlan(), LayerPlan("svd", (2,), 0.0)]


def test_no_choice_is_as_large_as_dense_and_none_is_empty():
    wide = Range(min=0.05, max=1, steps=20)
    rule = Rule(density=Range(min=0.01, max=1, steps=20), rank_ratio=wide, combined_rank_ratio=wide)
    menus = Space(rules=(rule,)).menus(LAYERS)
    for layer in LAYERS:
        assert menus[layer.name][0].untouched
        assert all(0 < layer_cost(layer, plan).params < layer.numel for plan in menus[layer.name][1:])
    assert len(menus["blocks.0.fc"]) > 50


def test_grouped_layers_are_offered_no_low_rank():
    assert {p.family for p in Space().menus(LAYERS)["blocks.0.dw"]} == {"dense", "sparse"}


def test_first_rule_that_covers_a_layer_decides():
    space = Space(rules=(only(0.3, layers=("blocks.*",), exclude=("*.dw",)), only(0.6, layers=("blocks.*", "stem.*"))))
    assert {name: menu[1:] for name, menu in space.menus(LAYERS).items()} == {
        "blocks.0.fc": [LayerPlan(density=0.3)],
        "blocks.0.dw": [LayerPlan(density=0.6)],
        "stem.conv": [LayerPlan(density=0.6)],
        "head": [],
    }


def test_excluded_layers_stay_dense():
    assert Space(rules=(Rule(exclude=("stem.*", "head")),)).menus(LAYERS)["stem.conv"] == [LayerPlan()]


@pytest.mark.parametrize("rule", [Rule(layers=("*.attn",)), Rule(exclude=("block.*",))])
def test_a_glob_without_a_layer_is_an_error(rule):
    with pytest.raises(ConfigError, match=r"must match.*stem\.conv"):
        Space(rules=(Rule(), rule)).menus(LAYERS)


def test_a_glob_may_name_a_refused_layer():
    menus = Space(rules=(Rule(exclude=("attn.out",)),)).menus(LAYERS, {"attn.out": "why"})
    assert set(menus) == {layer.name for layer in LAYERS}


@pytest.mark.parametrize(("multiple", "ranks"), [(1, [2, 4, 10]), (4, [4, 8]), (16, [16]), ("auto", [2, 4, 10, 16])])
def test_ranks_are_multiples(multiple, ranks):
    fc = LayerSpec("fc", "linear", (40, 40), 1, 1)
    rule = Rule(families=("low-rank",), rank_ratio=Range(min=0.05, max=0.25, steps=3), rank_multiple=multiple)
    assert [p.rank[0] for p in Space(rules=(rule,)).menus((fc,))["fc"][1:]] == ranks


def test_a_layer_with_fewer_ranks_than_the_multiple_keeps_its_largest():
    narrow, rule = LayerSpec("fc", "linear", (100, 10), 1, 1), Rule(families=("low-rank",), rank_multiple=16)
    assert Space(rules=(rule,)).menus((narrow,))["fc"] == [LayerPlan()]  # rank 10 is larger than dense
    wide = LayerSpec("conv", "conv2d", (12, 64, 3, 3), 1, 10)
    rule = Rule(families=("low-rank",), formats=("tucker2",), rank_multiple=16)
    assert {p.rank for p in Space(rules=(rule,)).menus((wide,))["conv"][1:]} == {(12, 16), (12, 32)}
