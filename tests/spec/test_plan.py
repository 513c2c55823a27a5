import json

import pytest

from lrsearch.errors import ArtifactError
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.plan import LayerPlan, Plan

MIXED = Plan({"b": LayerPlan("svd", (3,), 0.25), "a": LayerPlan(density=0.1), "c": LayerPlan("svd", (2,), 0.0)})


@pytest.mark.parametrize(
    ("plan", "family", "label"),
    [
        (LayerPlan(), "dense", "dense"),
        (LayerPlan(density=0.3), "sparse", "density 0.3"),
        (LayerPlan(density=0.0), "sparse", "zero"),
        (LayerPlan("svd", (8,), 0.0), "low-rank", "svd rank 8"),
        (LayerPlan("svd", (8,), 0.25), "low-rank+sparse", "svd rank 8 + density 0.25"),
    ],
)
def test_labels(plan, family, label):
    assert (plan.family, str(plan), plan.untouched) == (family, label, family == "dense")


def test_kept_is_the_density_of_the_whole_weight():
    layer = LayerSpec("a", "conv2d", (6, 2, 3, 3), 3, 1)
    assert (layer.matrix_shape, layer.numel, layer.max_rank) == ((3, 2, 18), 108, 0)
    assert [LayerPlan(density=d).kept(layer) for d in (0.0, 0.1, 0.25, 1.0)] == [0, 11, 27, 108]


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


@pytest.mark.parametrize("change", [LayerPlan(density=0.11), LayerPlan("svd", (1,), 0.1), LayerPlan()])
def test_fingerprint_tells_plans_apart(change):
    assert Plan({**MIXED.layers, "a": change}).fingerprint != MIXED.fingerprint


def test_a_plan_cannot_be_changed():
    with pytest.raises(TypeError):
        MIXED.layers["a"] = LayerPlan()


@pytest.mark.parametrize(
    "data",
    [
        {"a": {"format": "svd", "rank": 0, "density": 0.5}},
        {"a": {"format": "dense", "rank": 4, "density": 0.5}},
        {"a": {"format": "dense", "rank": -1, "density": 0.5}},
        {"a": {"format": "svd", "rank": 2.5, "density": 0.5}},
        {"a": {"format": "svd", "rank": "2", "density": 0.5}},
        {"a": {"format": "dense", "rank": 0, "density": 1.5}},
        {"a": {"format": "dense", "rank": 0, "density": float("nan")}},
        {"a": {"format": "dense", "rank": 0, "density": None}},
        {"a": {"format": "tucker", "rank": 0, "density": 0.5}},
        {"a": {"format": "dense", "rank": 0, "density": 0.5, "blocks": 2}},
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
