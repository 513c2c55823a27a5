"""A divergence is shown in its task's unit, wherever it is shown."""

import pytest
from jobs import stored

import lrsearch
from lrsearch.report.tables import readable
from lrsearch.search.records import DENSE
from lrsearch.task.base import Task


class Mine(Task):
    """Absolute differences, in points."""

    name, unit = "mine", "<points>"

    def divergence(self, outputs, reference):
        return (outputs - reference).abs().mean(1)


class Unnamed(Mine):
    """The same without a unit."""

    unit = ""


TASKS = {
    "classification": ("classification", "nats"), "regression": ("regression", "variances"),
    "mine": (Mine, "<points>"), "none": (Unnamed, ""),
}


@pytest.mark.parametrize(("task", "unit"), TASKS.values(), ids=TASKS)
def test_divergences_are_in_the_unit_of_the_task(job, task, unit):
    sets = {role: job[role][0] for role in ("calibration", "score")}
    result = lrsearch.search(**{**job, **sets, "train": None, "task": task, "search": {"trials": 1, "control_points": 1}})
    heading, escaped = (f"KL to dense, {u}" if u else "KL to dense" for u in (unit, unit.replace("<", "&lt;").replace(">", "&gt;")))
    for found in (result, lrsearch.open(job["out"])):
        assert found.unit == unit
        assert found.plot().layout.yaxis.title.text == heading
        assert f">{escaped}</text>" in found._repr_html_()
        assert found.notes[0].endswith(f"; KL in {unit}." if unit else "% are of dense.")
        assert ("KL, nats" in readable(found.front, found.unit)) == (unit == "nats")
        assert ("nats" in found._repr_html_()) == (unit == "nats")
    page = (job["out"] / "report.html").read_text()
    shown = page[:page.index("<script>")]
    assert f"the profile predicts{', in ' * bool(unit)}{escaped.partition(', ')[2]}, if this layer" in shown


@pytest.mark.parametrize(("task", "unit"), [("classification", "nats"), ("regression", "variances"), (Mine, "")])
def test_a_folder_of_before_units_were_kept_has_that_of_a_known_task(job, task, unit):
    sets = {role: job[role][0] for role in ("calibration", "score")}
    lrsearch.search(**{**job, **sets, "train": None, "task": task, "search": {"trials": 1, "control_points": 1}})
    study = stored(job["out"])
    study.set_user_attr(DENSE, {key: value for key, value in study.user_attrs[DENSE].items() if key != "unit"})
    assert lrsearch.open(job["out"]).unit == unit
