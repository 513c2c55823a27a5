import json
from dataclasses import replace

import pytest

from lrsearch.errors import LatencyError
from lrsearch.latency.table import GRAIN, LatencyTable
from lrsearch.spec.cost import Cost, CostModel
from lrsearch.spec.plan import LayerPlan, Plan

LOW, HIGH, COLUMN = LayerPlan("svd", (3,), 0.0), LayerPlan("svd", (20,), 0.0), LayerPlan(density=0.5, pattern="column")


def test_a_layer_takes_what_was_measured_but_never_more_than_dense(table, survey):
    calls = survey.calls["pointwise"]
    assert table.ms(calls, LayerPlan()) == 1.0
    assert table.ms(calls, LOW) == round(0.3 * GRAIN) / GRAIN
    assert table.ms(calls, LayerPlan("svd", (3,), 0.5)) == 1.0  # with an unstructured S it runs as one dense layer
    assert table.ms(calls, COLUMN) == 1.0
    assert table.ms(calls * 2, LOW) == pytest.approx(0.6, abs=2 / GRAIN)


def test_in_a_whole_model_a_layer_saves_its_scale_of_what_it_saves_alone_and_takes_no_less_than_nothing(table, survey):
    calls = survey.calls["pointwise"]
    half, double = (replace(table, scale=scale) for scale in (0.5, 2.0))
    assert (half.ms(calls, LOW), double.ms(calls, LOW)) == (pytest.approx(0.65, abs=1 / GRAIN), 0.0)
    assert half.ms(calls, COLUMN) == double.ms(calls, COLUMN) == half.ms(calls, LayerPlan()) == 1.0
    assert half.merged(survey.calls, Plan({"pointwise": LOW})) == []


def test_what_is_slower_than_dense_is_deployed_as_dense(table, survey):
    plan = Plan({"pointwise": LOW, "head": COLUMN, "stem": LayerPlan(density=0.5)})
    assert table.merged(survey.calls, plan) == ["head", "stem"]


def test_sums_are_exact(table, survey, layers, menus):
    costs = CostModel(Cost(), layers, Cost()).timed(table.dense_ms, table.layers(survey.calls, menus))
    assert costs.dense.latency_ms == table.dense.ms
    pointwise = next(p for p in menus["pointwise"] if p.executed.rank)
    assert costs(Plan({"pointwise": pointwise})).latency_ms == table.dense_ms - 1 + table.ms(survey.calls["pointwise"], pointwise)


def test_tables_survive_the_disk(table, tmp_path):
    table = replace(table, scale=1.25, stray=0.02)
    table.save(tmp_path / "a" / "t.json")
    assert LatencyTable.load(tmp_path / "a" / "t.json") == table
    assert json.loads((tmp_path / "a" / "t.json").read_text())["conditions"]["cpu"] == "Some CPU"


@pytest.mark.parametrize("text", [None, "no json", "[]", '{"conditions": {}}', '{"conditions": {"backend": 1}, "entries": {}}'])
def test_a_missing_or_damaged_table_is_refused(tmp_path, text):
    path = tmp_path / "t.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(LatencyError, match=r"t\.json: .*Measure it again"):
        LatencyTable.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cpu": "Other CPU"}, r'another machine.*got Some CPU, not Other CPU.*latency\.cpu: "Some CPU"'),
        ({"backend": "openvino"}, "backend"), ({"version": "2.0"}, "version.*1.0, not 2.0"), ({"threads": 4}, "threads"),
        ({"batch": 8}, "batch"), ({"dtype": "float16"}, "dtype"),
    ],
)  # fmt: skip
def test_a_table_of_other_conditions_is_refused(table, change, message):
    with pytest.raises(LatencyError, match=message):
        table.refuse_others(table.architecture, replace(table.conditions, **change), "here")


def test_a_table_from_before_names_had_extensions_is_of_this_machine(table, survey):
    here, other = (replace(table.conditions, cpu=f"Some CPU ({extension})") for extension in ("avx2", "avx512_vnni"))
    table.refuse_others(table.architecture, here, "here")
    table = replace(table, architecture=survey.architecture, entries={job.signature: {} for job in survey.jobs})
    for job in survey.jobs:
        table.entries[job.signature][job.key] = table.dense
    assert survey.covers(table, here)
    assert not survey.covers(replace(table, conditions=here), other)


def test_load_and_date_are_no_conditions_and_a_version_only_where_there_is_one(table):
    table.refuse_others(table.architecture, replace(table.conditions, load=9.0, date="tomorrow", version=""), "here")


def test_a_table_of_another_model_or_with_a_choice_missing_is_refused(table, survey):
    with pytest.raises(LatencyError, match="of this model"):
        table.refuse_others("another", table.conditions, "here")
    with pytest.raises(LatencyError, match=r"svd rank 20: the table must have every choice"):
        table.ms(survey.calls["pointwise"], HIGH)
