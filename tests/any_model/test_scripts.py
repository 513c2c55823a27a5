"""Any model, any data, any output: each script of the table works, or is refused by a line that says what to do."""

import importlib.util
import re

import pytest
import scripts

COSTS = ("params", "macs", "weight_bytes")


def _marks(name):
    row = scripts.ROWS[name]
    missing = bool(row.needs) and importlib.util.find_spec(row.needs) is None
    skipped = [pytest.mark.skipif(missing, reason=f"needs the package {row.needs}")] if row.needs else []
    return pytest.param(name, marks=[*skipped, pytest.mark.slow])


@pytest.mark.parametrize("name", [_marks(n) for n, row in scripts.ROWS.items() if not row.refused])
def test_a_search_works(name, tmp_path):
    row = scripts.ROWS[name]
    shown = scripts.alone(name, tmp_path, row.export)
    assert "failed" not in shown, shown["failed"]
    assert "refused" not in shown, shown["refused"]
    assert shown["task"] == row.task
    assert shown["rows"] >= 1
    for member in shown["members"]:
        assert member[shown["limit"]] <= scripts.LIMIT * shown["dense"][shown["limit"]]
        assert member["counted"] == member["params"]
        assert member["steps"] in ((0, 2) if shown["finetuned"] else (0,))
        assert member["computed"] == pytest.approx(member["recorded"], rel=row.tolerance, abs=1e-7)
    assert max(member["computed"] for member in shown["members"]) > 1e-7  # something was lost, and is seen
    if row.export:
        assert shown["failures"] == []
        assert shown["unchecked"] == {}
        assert {*COSTS, "divergence"} <= {*shown["checks"]}
        assert any(check.startswith("onnx difference of ") for check in shown["checks"])


@pytest.mark.parametrize("name", [_marks(n) for n, row in scripts.ROWS.items() if row.refused])
def test_what_cannot_be_taken_is_refused_in_one_line(name, tmp_path):
    shown = scripts.alone(name, tmp_path, False)
    assert "failed" not in shown, shown["failed"]
    assert re.search(scripts.ROWS[name].refused, shown["refused"])
    assert "\n" not in shown["refused"]
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").rglob("front.csv"))
