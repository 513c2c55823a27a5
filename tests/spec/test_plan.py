import json

import pytest

from lrsearch.errors import ArtifactError
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.plan import LayerPlan, Plan

MIXED = Plan({
    "b": LayerPlan("svd", (3,), 0.25), "a": LayerPlan(density=0.1), "c": LayerPlan("svd", (2,), 0.0),
    "d": LayerPlan("tt", (2, 3, 2), 0.25, "1:4"),
})  # fmt: skip


@pytest.mark.parametrize(
    ("plan", "family", "label"),
    [
        (LayerPlan(), "dense", "dense"),
        (LayerPlan(density=0.3), "sparse", "density 0.3"),
        (LayerPlan(density=0.0), "sparse", "zero"),
        (LayerPlan("svd", (8,), 0.0), "low-rank", "svd rank 8"),
        (LayerPlan("svd", (8,), 0.25), "low-rank+sparse", "svd rank 8 + density 0.25"),
        (LayerPlan("tucker2", (4, 2), 0.5, "2:4"), "low-rank+sparse", "tucker2 rank 4-2 + density 0.5 2:4"),
        (LayerPlan(density=0.3, pattern="row"), "sparse", "density 0.3 row"),
        (LayerPlan("svd", (8,)), "low-rank+sparse", "svd rank 8 + density 1"),
    ],
)
def test_labels(plan, family, label):
    assert (plan.family, str(plan), plan.untouched) == (family, label, family == "dense")


def test_kept_is_the_density_of_the_whole_weight():
    layer = LayerSpec("a", "conv2d", (6, 2, 3, 3), 3, 1)
    assert (layer.matrix_shape, layer.numel) == ((3, 2, 18), 108)
    assert [LayerPlan(density=d).kept(layer) for d in (0.0, 0.1, 0.25, 1.0)] == [0, 11, 27, 108]
    assert [LayerPlan(density=d, pattern="block2x1").kept(layer) for d in (0.0, 0.1, 0.25, 1.0)] == [0, 10, 28, 108]


def test_a_pattern_of_nothing_or_everything_is_none():
    assert LayerPlan("svd", (2,), 0.0, "2:4") == LayerPlan("svd", (2,), 0.0)
    assert LayerPlan(density=1.0, pattern="row") == LayerPlan()


def test_a_rank_may_come_as_a_list():
    assert LayerPlan("svd", [2], 0.0) == LayerPlan("svd", (2,), 0.0)
    assert hash(LayerPlan("svd", [2], 0.0)) == hash(LayerPlan("svd", (2,), 0.0))


CONV, LINEAR = LayerSpec("a", "conv2d", (6, 4, 3, 3)), LayerSpec("b", "linear", (6, 4))
DEPTHWISE = LayerSpec("c", "conv2d", (6, 1, 3, 3), 6)


@pytest.mark.parametrize(
    ("plan", "layer", "reason"),
    [
        (LayerPlan("svd", (2,), 0.1), CONV, ""),
        (LayerPlan("svd", (2,), 0.1), DEPTHWISE, "no low-rank part"),
        (LayerPlan("cp", (2,), 0.1), LINEAR, "larger than 1 x 1"),
        (LayerPlan("svd", (2, 2), 0.1), CONV, "svd takes 1 ranks there, not 2"),
        (LayerPlan("tt", (2, 2), 0.1), CONV, "tt takes 3 ranks there, not 2"),
        (LayerPlan("tt", (2, 2), 0.1), LINEAR, ""),
        (LayerPlan(density=0.5, pattern="row"), DEPTHWISE, "grouped"),
        (LayerPlan("svd", (2,), 0.5, "block4x4"), CONV, "6 outputs"),
        (LayerPlan("svd", (2,), 0.0, "block4x4"), CONV, ""),
        (LayerPlan(), DEPTHWISE, ""),
    ],
    ids=str,
)
def test_a_plan_knows_which_layers_cannot_have_it(plan, layer, reason):
    found = plan.refusal(layer)
    assert reason in found
    assert bool(found) == bool(reason)


def test_json_round_trip_keeps_plan_and_fingerprint():
    again = Plan.from_dict(json.loads(json.dumps(MIXED.to_dict())))
    assert again == MIXED
    assert again.fingerprint == MIXED.fingerprint
    assert len(MIXED.fingerprint) == 12


def test_layers_left_dense_are_no_part_of_a_plan():
    plan = Plan({"z": LayerPlan(), **MIXED.layers})
    assert plan == MIXED
    assert plan.fingerprint == MIXED.fingerprint
    assert plan["z"] == plan["never named"] == LayerPlan()


@pytest.mark.parametrize(
    "change",
    [LayerPlan(density=0.11), LayerPlan("svd", (1,), 0.1), LayerPlan("cp", (1,), 0.1), LayerPlan(density=0.1, pattern="row"), LayerPlan()],
)
def test_fingerprint_tells_plans_apart(change):
    assert Plan({**MIXED.layers, "a": change}).fingerprint != MIXED.fingerprint


def test_a_plan_cannot_be_changed():
    with pytest.raises(TypeError):
        MIXED.layers["a"] = LayerPlan()


@pytest.mark.parametrize(
    "data",
    [
        {"a": {"format": "svd", "rank": [], "density": 0.5}},
        {"a": {"format": "svd", "rank": [0], "density": 0.5}},
        {"a": {"format": "svd", "rank": [-1], "density": 0.5}},
        {"a": {"format": "svd", "rank": [2.5], "density": 0.5}},
        {"a": {"format": "svd", "rank": ["2"], "density": 0.5}},
        {"a": {"format": "svd", "rank": 2, "density": 0.5}},
        {"a": {"format": "dense", "rank": [4], "density": 0.5}},
        {"a": {"format": "dense", "rank": [], "density": 1.5}},
        {"a": {"format": "dense", "rank": [], "density": -0.1}},
        {"a": {"format": "dense", "rank": [], "density": float("nan")}},
        {"a": {"format": "dense", "rank": [], "density": None}},
        {"a": {"format": "tucker", "rank": [2], "density": 0.5}},
        {"a": {"format": "dense", "rank": [], "density": 0.5, "pattern": "checkered"}},
        {"a": {"format": "dense", "rank": [], "density": 0.5, "pattern": 4}},
        {"a": {"format": "dense", "rank": [], "density": 0.4, "pattern": "2:4"}},
        {"a": {"format": "dense", "rank": [], "density": 0.5, "blocks": 2}},
        {"a": [1, 2]},
        {"a": None},
        ["a"],
        None,
    ],
    ids=str,
)
def test_damaged_data_are_an_artifact_error(data):
    with pytest.raises(ArtifactError, match=r"^here: "):
        Plan.from_dict(data, "here")
