"""``space: auto``: each metric can be lowered, and nothing is offered that lowers none."""

import pytest
from toy import LAYERS

from lrsearch.spec.auto_space import auto_space
from lrsearch.spec.config import StudyConfig
from lrsearch.spec.cost import Budget, layer_cost
from lrsearch.spec.plan import LayerPlan
from lrsearch.workflows.materials import settings_of

ONE = {"params": {"params"}, "weight_bytes": {"weight_bytes"}, "macs": {"macs"}, "both": {"macs", "weight_bytes"}}


@pytest.mark.parametrize("metrics", ONE.values(), ids=ONE)
def test_every_choice_lowers_a_metric_and_each_metric_can_be_halved(metrics):
    for layer in LAYERS:
        if layer.name == "depthwise" and metrics == {"macs"}:
            assert auto_space(metrics).menus(LAYERS, counted=metrics)[layer.name] == [LayerPlan()]
            continue
        dense, menu = layer_cost(layer, LayerPlan()), auto_space(metrics).menus(LAYERS, counted=metrics)[layer.name][1:]
        costs = [layer_cost(layer, choice) for choice in menu]
        assert all(any(getattr(c, m) < getattr(dense, m) for m in metrics) for c in costs), layer.name
        for metric in metrics - ({"macs"} if layer.name == "depthwise" else set()):
            assert min(getattr(c, metric) for c in costs) < 0.5 * getattr(dense, metric), (layer.name, metric)


def test_what_is_executed_takes_every_format_and_whole_channels():
    menus = auto_space({"macs"}).menus(LAYERS)
    assert {c.format for menu in menus.values() for c in menu} == {"dense", "svd", "spatial-svd", "tucker2", "cp"}
    assert {c.pattern for menu in menus.values() for c in menu[1:] if c.density} == {"column", "row"}
    assert not any(c.rank and c.density for menu in menus.values() for c in menu)


def test_both_put_single_zeros_beside_svd_alone():
    menus = auto_space({"macs", "params"}).menus(LAYERS)
    combined = {(c.format, c.pattern) for menu in menus.values() for c in menu if c.rank and c.density}
    assert combined == {("svd", "unstructured")}


def test_a_metric_from_outside_may_be_lowered_by_anything():
    assert auto_space({"energy"}) == auto_space({"macs", "params"})


def test_latencies_are_asked_for_ranks_on_their_stairs():
    assert auto_space({"latency_ms"}).rules[0].rank_multiple == "auto"
    assert auto_space({"latency_ms", "params"}).rules[0].rank_multiple == "auto"


def test_a_study_has_the_space_of_its_costs_unless_it_names_one():
    assert StudyConfig(budget={"macs": 0.5}, objectives=("divergence", "macs")).space == auto_space({"macs"})
    assert StudyConfig(budget={"params": 0.5}, space="auto").space == auto_space({"params"})
    latency = {"budget": {"latency_ratio": 0.5}, "objectives": ("divergence", "latency_ms"), "latency": {}}
    assert StudyConfig(**latency).space == auto_space({"latency_ms"})
    named = {"rules": [{"formats": ["cp"]}]}
    assert StudyConfig(space=named).space.rules[0].formats == ("cp",)


def test_another_budget_in_python_takes_its_own_space():
    study = StudyConfig(budget={"params": 0.5})
    changed = settings_of(study, {"objectives": ["divergence", "macs"]}, "lrsearch.search", budget=Budget(macs=0.5))
    assert changed.space == auto_space({"macs"})
    named = StudyConfig(budget={"params": 0.5}, space={"rules": [{"formats": ["cp"]}]})
    assert settings_of(named, {}, "lrsearch.search", budget=Budget(macs=0.5)).space == named.space
