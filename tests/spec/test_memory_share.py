"""One setting says how much memory may be taken by what is kept for speed."""

import json
import os
import subprocess
import sys

import pytest

from lrsearch.errors import ConfigError
from lrsearch.spec.memory import disk_cap, give_back, memory_share

CAPS = """
import json
from lrsearch.compress.sparse_fit import MOST_CACHED
from lrsearch.profile.statistics import STATISTICS_CAP
from lrsearch.task.data import MEMORY_CAP, RESIDENT_CAP
from lrsearch.task.scoring import REFERENCE_CAP
from lrsearch.train.polish import ACTIVATIONS_CAP
print(json.dumps([4 * MOST_CACHED, RESIDENT_CAP, STATISTICS_CAP, REFERENCE_CAP, MEMORY_CAP, ACTIVATIONS_CAP]))
"""


@pytest.mark.parametrize(("setting", "whole"), [(None, 12 * 2**30), ("1.5 GiB", 1.5 * 2**30)])
def test_every_cap_is_a_share_of_it(setting, whole):
    environment = {k: v for k, v in os.environ.items() if k != "LRSEARCH_MEMORY"} | ({"LRSEARCH_MEMORY": setting} if setting else {})
    done = subprocess.run([sys.executable, "-c", CAPS], env=environment, capture_output=True, text=True, check=True)
    assert [cap / whole for cap in json.loads(done.stdout)] == pytest.approx([1 / 24, 1 / 12, 1 / 6, 1 / 6, 1 / 3, 1 / 2])


def test_what_is_no_size_is_said(monkeypatch):
    monkeypatch.setenv("LRSEARCH_MEMORY", "much")
    with pytest.raises(ConfigError, match="LRSEARCH_MEMORY: must be a number and one of"):
        memory_share(1, 2)


def test_a_disk_that_is_no_size_is_told(monkeypatch):
    monkeypatch.setenv("LRSEARCH_DISK", "much")
    with pytest.raises(ConfigError, match="LRSEARCH_DISK: must be a number and one of"):
        disk_cap()
    monkeypatch.setenv("LRSEARCH_DISK", "2 GiB")
    assert disk_cap() == 2**31


def test_what_was_freed_may_be_given_back_at_any_time():
    give_back()
