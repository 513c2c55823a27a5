import pytest
from pydantic import ValidationError

from lrsearch.errors import ConfigError
from lrsearch.spec.auto_space import auto_space
from lrsearch.spec.config import StudyConfig
from lrsearch.spec.parse import parse
from lrsearch.spec.plan import LayerPlan


def test_defaults():
    config = parse(StudyConfig, {}, "study.yaml")
    assert config == StudyConfig()
    assert config.objectives == ("divergence", "params")
    assert config.budget == {}
    assert config.space == auto_space({"params"})
    assert (config.search.sampler, config.search.trials, config.proxy.finetune.steps) == ("learned", 60, 0)


def test_values_arrive():
    data = {
        "model": {"timm": "resnet18"},
        "data": {"calibration": {"folder": "a", "slice": [0, 10]}, "score": {"call": "m:f", "args": {"n": 1}}},
        "budget": {"params": 0.3, "macs": 80000, "weight_bytes": "128 KiB"},
        "weights": {"values": "int8"},
        "space": {"split": ["*.qkv"], "rules": [{
            "formats": ["cp", "tt"], "patterns": ["2:4"], "layers": ["fc"], "families": ["sparse"],
            "density": {"min": 0.5, "max": 0.5, "steps": 1},
        }]},
    }
    config = parse(StudyConfig, data, "study.yaml")
    assert config.budget == {"params": 0.3, "macs": 80000, "weight_bytes": 131072}
    assert config.weights.values == "int8"
    assert config.data.calibration.slice == (0, 10)
    assert config.data.score.args == {"n": 1}
    assert config.space.rules[0].density.values() == [0.5]
    assert (config.space.rules[0].formats, config.space.rules[0].patterns, config.space.split) == (("cp", "tt"), ("2:4",), ("*.qkv",))
    assert parse(StudyConfig, config.model_dump(mode="json"), "again") == config


@pytest.mark.parametrize(
    ("data", "place"),
    [
        ({"search": {"trials": "many"}}, "search.trials"),
        ({"search": {"trials": 0}}, "search.trials"),
        ({"search": {"lowest": 1.5}}, "search.lowest"),
        ({"search": {"sampler": "grid"}}, "search.sampler"),
        ({"search": 3}, "search"),
        ({"proxy": {"metric": "accuracy"}}, "proxy.metric"),
        ({"model": {"timm": "a", "call": "m:f"}}, "model"),
        ({"model": {}}, "model"),
        ({"data": {"calibration": {"folder": "a"}}}, "data.score"),
        ({"data": {"calibration": {"folder": "a", "slice": [5, 5]}, "score": {"folder": "b"}}}, "data.calibration"),
        ({"objectives": ["params", "divergence"]}, "objectives"),
        ({"objectives": ["divergence"]}, "objectives"),
        ({"objectives": ["divergence", "metric"]}, "objectives"),
        ({"objectives": ["divergence", "params", "params"]}, "objectives"),
        ({"objectives": ["divergence", "latency"]}, "objectives"),
        ({"budget": {"latency": 0.5}}, "budget"),
        ({"budget": {"params": "small"}}, "budget.params"),
        ({"budget": {"weight_bytes": "small"}}, "budget.weight_bytes"),
        ({"budget": 3}, "budget"),
        ({"weights": {"values": "int3"}}, "weights.values"),
        ({"space": {"rules": [{"families": ["tucker"]}]}}, "space.rules.0.families.0"),
        ({"space": {"rules": [{"formats": ["svd", "tucker"]}]}}, "space.rules.0.formats"),
        ({"space": {"rules": [{"patterns": ["5:4"]}]}}, "space.rules.0.patterns"),
        ({"space": {"split": "*.qkv"}}, "space.split"),
    ],
    ids=str,
)
def test_wrong_values_name_their_key(refusal, data, place):
    assert refusal(data).place == f"study.yaml: {place}"


def test_unknown_formats_and_patterns_list_the_known(refusal):
    assert "unknown format 'tucker'; one of" in refusal({"space": {"rules": [{"formats": ["tucker"]}]}}).rule
    assert "no pattern '5:4'; use unstructured" in refusal({"space": {"rules": [{"patterns": ["5:4"]}]}}).rule


def test_unknown_budget_metric_lists_the_known(refusal):
    error = refusal({"budget": {"latency": 0.5}})
    assert "unknown metric 'latency'; one of params, macs, nonzero_macs, weight_bytes" in error.rule


@pytest.mark.parametrize("limit", [0, -1, 1.5, float("inf")])
def test_wrong_budget_names_its_metric(refusal, limit):
    assert "budget.params" in refusal({"budget": {"params": limit}}).place


def test_an_error_is_one_line_with_its_four_parts():
    error = ConfigError("must be small", value=["x\n" * 300], place="here", remedy="Do so.")
    assert "\n" not in str(error)
    assert str(error).startswith("here: must be small; got ['x")
    assert str(error).endswith("... Do so.")
    assert "density 0.5" in str(ConfigError("r", value=str(LayerPlan(density=0.5)), place="p", remedy="x"))


def test_several_outputs_have_weights_and_tasks_and_those_of_a_tuple_are_known_by_number():
    config = StudyConfig(task={0: "classification", 1: "regression"}, output={0: 1, 1: 0.5})
    assert config.task == {"0": "classification", "1": "regression"}
    assert config.output == {"0": 1.0, "1": 0.5}


@pytest.mark.parametrize(("wrong", "told"), [
    ({"output": {}}, "at least 1"), ({"output": {"boxes": 0}}, "greater than 0"), ({"output": {"boxes": "many"}}, "number"),
    ({"task": {"boxes": "evil:Task"}}, "pattern"), ({"task": {"boxes": "auto"}}, "one for each"), ({"task": {}}, "at least 1"),
    ({"task": {"boxes": "regression"}, "output": "boxes"}, "must weigh the outputs that task names, boxes; got boxes"),
    ({"task": {"boxes": "regression"}, "output": {"scores": 1.0}}, "must weigh the outputs that task names, boxes"),
])
def test_weights_and_tasks_of_several_outputs_are_checked(wrong, told):
    with pytest.raises(ValidationError, match=told):
        StudyConfig(**wrong)


@pytest.mark.parametrize("task", ["evil-task:Task", "a:b:c", "a b", "zoo:Task\n", "../zoo:Task", ""])
def test_a_task_is_a_name_or_a_dotted_path(task):
    with pytest.raises(ValidationError):
        StudyConfig(task=task)
    assert StudyConfig(task="zoo:Task").task == "zoo:Task"
