"""A divergence is shown in its task's unit, wherever it is shown."""

import sqlite3
from contextlib import closing

import pytest
from jobs import stored

import lrsearch
from lrsearch.report.tables import readable
from lrsearch.search.records import DENSE
from lrsearch.spec.score import FORMER_NAMES
from lrsearch.spec.units import in_unit
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
    far = "KL" if unit == "nats" else "divergence"
    heading, escaped = (in_unit(f"{far} from dense", u) for u in (unit, unit.replace("<", "&lt;").replace(">", "&gt;")))
    for found in (result, lrsearch.open(job["out"])):
        assert found.unit == unit
        assert found.plot().layout.yaxis.title.text == heading
        assert f">{escaped}</text>" in found._repr_html_()
        assert found.notes[0].endswith(f"; {far} in {unit}." if unit else "% are of dense.")
        assert in_unit(far, unit) in readable(found.front, found.unit)
        assert far in found.table()
        assert repr(lrsearch.ask(found.folder, lrsearch.Budget(params=1.0))).count(f" {far} ") == 2
        assert ("KL" in found._repr_html_()) == (unit == "nats")
        assert ("nats" in found._repr_html_()) == (unit == "nats")
    page = (job["out"] / "report.html").read_text()
    shown = page[:page.index("<script>")]
    assert f'"far": "{far}"' in page
    assert f", {far} " in (job["out"] / "search.log").read_text()
    assert f"Damage is a divergence{', in ' * bool(unit)}{escaped.partition(', ')[2]}: what is predicted if this layer" in shown


@pytest.mark.parametrize(("task", "unit"), [("classification", "nats"), ("regression", "variances"), (Mine, "")])
def test_a_folder_of_before_units_were_kept_has_that_of_a_known_task(job, task, unit):
    sets = {role: job[role][0] for role in ("calibration", "score")}
    lrsearch.search(**{**job, **sets, "train": None, "task": task, "search": {"trials": 1, "control_points": 1}})
    study = stored(job["out"])
    study.set_user_attr(DENSE, {key: value for key, value in study.user_attrs[DENSE].items() if key != "unit"})
    assert lrsearch.open(job["out"]).unit == unit


def test_folders_answer_to_former_names_and_are_read_by_them(job):
    sets = {role: job[role][0] for role in ("calibration", "score")}
    few = {**job, **sets, "train": None, "search": {"trials": 1, "control_points": 1}}
    result = lrsearch.search(**few)
    assert result.front.kl.tolist() == result.front["kl"].tolist() == result.front.divergence.tolist()
    assert list(result.front[["kl", "params"]]) == ["divergence", "params"]
    row = result.front.loc[0]
    assert row.kl == row["kl"] == row.divergence == result.front["kl"][0] == next(iter(result.front.iterrows()))[1].kl
    assert list(result.front.sort_values("kl").kl) == sorted(result.front.divergence)
    assert not hasattr(row, "lk")
    assert result.trials["kl_before_finetune"].notna().all()
    front = result.folder / "front.csv"
    assert {"divergence", "divergence_stderr", "divergence_before_finetune"} <= set(front.read_text().split("\n")[0].split(","))
    assert "kl" not in (result.folder / "study.json").read_text()
    _as_of_before(result.folder)
    again = lrsearch.open(result.folder)
    assert again.objectives == ("divergence", "params")
    assert again.front.divergence.tolist() == result.front.divergence.tolist()
    more = lrsearch.search(**{**few, "search": {"trials": 2, "control_points": 1}})  # goes on
    assert len(more.trials) == len(result.trials) + 1
    assert lrsearch.load(result.folder / result.front.model[0], base=job["model"]) is not None


def _as_of_before(folder):
    """Rewrite a study as it was kept when the divergence was called kl."""
    def former(text):
        for once, today in FORMER_NAMES.items():
            text = text.replace(f'"{today}"', f'"{once}"')
        return text

    (folder / "study.json").write_text(former((folder / "study.json").read_text()))
    with closing(sqlite3.connect(folder / "study.db")) as database:
        for table, key in (("trial_user_attributes", "trial_user_attribute_id"), ("study_user_attributes", "study_user_attribute_id")):
            for row, value in database.execute(f"SELECT {key}, value_json FROM {table}").fetchall():
                database.execute(f"UPDATE {table} SET value_json = ? WHERE {key} = ?", (former(value), row))
        database.commit()
