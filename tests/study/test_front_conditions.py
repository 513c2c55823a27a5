"""Conditions over the columns of the front."""

import pandas as pd
import pytest

from lrsearch.errors import ConfigError
from lrsearch.study.front_conditions import Condition, columns, parse_conditions, pick

FRONT = pd.DataFrame({
    "source": ["dense", "search", "search"], "divergence": [0.0, 0.1, 0.3], "metric": [0.9, 0.8, 0.85],
    "params_ratio": [1.0, 0.5, 0.25], "weight_bytes": [4000, 2000, 1000], "latency_ms_ratio": [1.0, 0.7, 0.6],
})  # fmt: skip


def rows(text, objective="divergence"):
    return pick(FRONT, objective, parse_conditions(text, columns(FRONT)))


def test_the_best_that_satisfies_all_comes_first():
    assert rows("params_ratio<=0.5") == [1, 2]
    assert rows("params_ratio<=0.5", "metric") == [2, 1]
    assert rows("params_ratio <= 0.5, kl > 0.2") == [2]
    assert pick(FRONT, "divergence", ()) == [0, 1, 2]


def test_bytes_have_units_and_latency_ratio_is_a_short_name():
    assert parse_conditions("weight_bytes<=1.5 KiB,latency_ratio<0.65", columns(FRONT)) == (
        Condition("weight_bytes", "<=", 1536.0), Condition("latency_ms_ratio", "<", 0.65),
    )  # fmt: skip
    assert rows("weight_bytes<=2kB,latency_ratio>=0.7") == [1]


def test_a_share_is_read_as_a_budget_reads_it():
    both = ["params", "params_ratio"]
    assert parse_conditions("params<=0.3,params<=80", both) == (Condition("params_ratio", "<=", 0.3), Condition("params", "<=", 80.0))
    assert parse_conditions("macs<0.5") == (Condition("macs_ratio", "<", 0.5),)
    assert parse_conditions("latency_ms<0.5") == (Condition("latency_ms", "<", 0.5),)  # as limits are: milliseconds


@pytest.mark.parametrize(
    "text",
    ["", "kl", "kl<=", "kl<=x", "speed<=1", "source==1", "kl=<1", "kl<=1,", "kl<=128KiB", "__import__('os')<=1", "kl<=1 or 1", "kl<=nan"],
)
def test_anything_else_is_refused_with_the_columns(text):
    with pytest.raises(ConfigError, match=r"--pick: must be column.*Columns: divergence, metric, params_ratio, weight_bytes, latency_ms"):
        parse_conditions(text, columns(FRONT))


def test_what_no_member_satisfies_is_told_with_the_range_that_there_is():
    with pytest.raises(ConfigError, match=r"got params_ratio<=0\.1, where params_ratio is 0\.25 to 1\."):
        rows("params_ratio<=0.1")
    with pytest.raises(ConfigError, match=r"got params_ratio<=0\.3, where params_ratio is 0\.5 to 1\."):
        rows("kl<0.2,params_ratio<=0.3")
    with pytest.raises(ConfigError, match="an empty front"):
        pick(FRONT[:0], "divergence", [Condition("divergence", "<", 1.0)])
