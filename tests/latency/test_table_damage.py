"""A latency table holds numbers that may be measurements, and is as it was written."""

import json

import pytest

from lrsearch.errors import LatencyError
from lrsearch.latency.runner import Timing
from lrsearch.latency.table import Conditions, LatencyTable

FIELDS = Timing._fields


@pytest.fixture
def path(tmp_path):
    timing = Timing(*[1.0] * len(FIELDS))
    conditions = Conditions("onnxruntime", "1", 1, 1, "float32", "a processor")
    LatencyTable(conditions, "net", timing, {"layer": {"dense": timing}}).save(tmp_path / "table.json")
    return tmp_path / "table.json"


def test_a_table_is_read_back(path):
    assert LatencyTable.load(path).entries["layer"]["dense"].ms == 1.0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -5, 0, 1e9, "1", None])
@pytest.mark.parametrize("where", ["dense", "entries"])
def test_what_is_no_measurement_is_refused(path, value, where):
    data = json.loads(path.read_text())
    del data["sha256"]
    (data["dense"] if where == "dense" else data["entries"]["layer"]["dense"])["ms"] = value
    path.write_text(json.dumps(data))
    with pytest.raises(LatencyError, match="must be a table as lrsearch wrote it"):
        LatencyTable.load(path)


@pytest.mark.parametrize(("field", "value"), [("scale", -1), ("stray", float("nan")), ("scale", 1e9)])
def test_a_changed_table_is_refused(path, field, value):
    data = json.loads(path.read_text())
    data[field] = value
    path.write_text(json.dumps(data))
    with pytest.raises(LatencyError, match="table"):
        LatencyTable.load(path)
