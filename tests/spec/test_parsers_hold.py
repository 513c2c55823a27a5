"""Whatever is written, a parser gives a value or says in one line what is wrong."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrsearch.errors import LrsearchError
from lrsearch.spec.config import StudyConfig
from lrsearch.spec.cost import Budget, Cost
from lrsearch.spec.parse import from_yaml, parse
from lrsearch.spec.pattern import pattern
from lrsearch.spec.shipped import lay_over
from lrsearch.spec.units import UNITS, parse_bytes
from lrsearch.study.front_conditions import OPERATORS, parse_conditions

TEXT = st.text(max_size=40) | st.text("0123456789.eE+-:xblock<>=, KMGiB_params", max_size=30)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6) | st.integers(), inner, max_size=3), max_leaves=8,
)
KEYS = st.sampled_from([*StudyConfig.model_fields, "x", ""])


def refused(call, *arguments):
    """The value, or None where it was refused as it should be."""
    said = ""
    try:
        return call(*arguments)
    except LrsearchError as error:
        said = str(error)
    assert said
    assert "\n" not in said
    return None


@given(TEXT)
def test_bytes(text):
    found = refused(parse_bytes, text, "here")
    assert found is None or 0 <= found < 10**28


@given(st.integers(0, 10**15), st.sampled_from(list(UNITS)), st.sampled_from(["", " ", "  "]))
def test_whole_bytes_are_exact(number, unit, space):
    found = parse_bytes(f"{number}{space}{unit}", "here")
    assert found == int(float(number) * UNITS[unit])


@pytest.mark.parametrize("key", ["\n", "a\nb", "\x85", "\u2028"])
def test_a_key_with_a_line_break_is_told_in_one_line(key):
    with pytest.raises(LrsearchError) as caught:
        parse(StudyConfig, {"model": {key: None}}, "study.yaml")
    assert len(str(caught.value).splitlines()) == 1
    assert "got ." not in str(caught.value)


@given(TEXT)
def test_patterns(text):
    try:
        found = pattern(text)
    except ValueError:
        return
    assert found.height * found.width > 0


@given(TEXT)
def test_conditions(text):
    for condition in refused(parse_conditions, text) or ():
        assert condition.operator in OPERATORS
        assert not math.isnan(condition.number)


@given(st.sampled_from(["divergence", "params_ratio"]), st.sampled_from(list(OPERATORS)), st.floats(allow_nan=False, allow_infinity=False))
def test_conditions_come_back(column, operator, number):
    (found,) = parse_conditions(f"{column} {operator} {number!r}")
    assert (found.column, found.operator, found.number) == (column, operator, number)


@given(TEXT)
def test_overrides(text):
    data = refused(lay_over, {"search": {"trials": 3}, "name": "a"}, [text])
    assert data is None or isinstance(data, dict)


@given(st.text(max_size=60))
def test_yaml(text):
    refused(from_yaml, text, "here")


@settings(deadline=None)
@given(st.dictionaries(KEYS, PLAIN, max_size=3))
def test_study_files(data):
    found = refused(parse, StudyConfig, data, "study.yaml")
    assert found is None or parse(StudyConfig, found.model_dump(mode="json"), "again") == found


@given(st.dictionaries(st.sampled_from(["params", "macs", "weight_bytes", "latency_ms", "latency_ratio", "flops"]), PLAIN, max_size=3))
def test_budgets(limits):
    budget = refused(lambda: Budget(**limits))
    if budget is not None:
        assert all(limit >= 0 for limit in budget.resolve(Cost(100, 100, 100, 100, 5.0)).values())
