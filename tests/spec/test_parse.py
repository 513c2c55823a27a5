import pytest

from lrsearch.errors import ConfigError
from lrsearch.spec.parse import read_yaml


@pytest.mark.parametrize(
    ("data", "place", "nearest"),
    [
        ({"objectivs": ["divergence"]}, "objectivs", "objectives"),
        ({"search": {"trails": 3}}, "search.trails", "trials"),
        ({"model": {"tim": "resnet18"}}, "model.tim", "timm"),
        ({"proxy": {"finetune": {"step": 1}}}, "proxy.finetune.step", "steps"),
        ({"space": {"rules": [{"densty": 1}]}}, "space.rules.0.densty", "density"),
        ({"space": {"rules": [{"density": {"min": 0.1, "max": 0.2, "steps": 2, "stepz": 2}}]}}, "space.rules.0.density.stepz", "steps"),
    ],
)
def test_unknown_key_is_placed_and_the_nearest_suggested(refusal, data, place, nearest):
    error = refusal(data)
    assert error.rule == "unknown key"
    assert error.place == f"study.yaml: {place}"
    assert error.remedy == f"Did you mean {nearest!r}?"


def test_unknown_key_like_no_other_lists_the_known(refusal):
    assert refusal({"search": {"qqq": 1}}).remedy.startswith("Known keys: trials, sampler, ")
    assert refusal({"space": {"rules": [{"match": 1}]}}).remedy.startswith("Known keys: ")


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        ({"recover": {"augment": 3}}, "must be 'auto', 'none' or 'flip-crop', or must be text"),
        ({"recover": {"augment": "flip"}}, "must be 'auto', 'none' or 'flip-crop', or must be a dotted path such as package.module:name"),
        ({"space": {"rules": [{"rank_multiple": 0}]}}, "must be greater than or equal to 1, or must be 'auto'"),
        ({"proxy": {"batchnorm": "no"}}, "must be 'auto' or 'keep'"),
        ({"objectives": "divergence"}, "must be a list"),
        ({"budget": 3}, "must be a mapping of keys"),
        ({"data": {"calibration": {"folder": "a", "slice": [1, 2, 3]}, "score": {"folder": "b"}}}, "must have at most 2 items, not 3"),
        ({"model": {}}, "give exactly one of timm and call"),
    ],
    ids=str,
)
def test_rules_are_in_the_words_of_a_study_file(refusal, data, rule):
    assert refusal(data).rule == rule


def test_a_missing_key_is_to_be_added(refusal):
    error = refusal({"data": {"calibration": {"folder": "a"}}})
    assert (error.place, error.rule, error.remedy) == ("study.yaml: data.score", "is missing", "Add this key.")


def test_what_the_user_wrote_is_quoted_as_it_is(refusal):
    assert "'valid tuple'" in refusal({"space": {"rules": [{"formats": ["valid tuple"]}]}}).rule


@pytest.mark.parametrize("value", [3, None, True, "x", [1]])
def test_what_should_have_keys_says_which(refusal, value):
    error = refusal({"proxy": {"finetune": value}})
    assert (error.place, error.rule, error.value) == ("study.yaml: proxy.finetune", "must be a mapping of keys", value)
    assert error.remedy.startswith("Its keys are batch, loss, stages, optimizer, learning_rate, ")


def test_also_of_what_may_be_left_out(refusal):
    assert refusal({"recover": {"gradual": 3}}).remedy == "Its keys are start, until, importance."


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "readable"), (b"a: [1", "valid YAML"), (b"- 1", "mapping"), (b"", "mapping"), (b"\xff\xfe\x00\x80", None)],
)
def test_read_yaml_refuses(tmp_path, content, said):
    path = tmp_path / "s.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=said) as caught:
        read_yaml(path)
    assert caught.value.place == str(path)
