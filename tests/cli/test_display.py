import io
import logging
import sys

from rich.console import Console

from lrsearch.cli.display import Bars, show_certificate
from lrsearch.report.certificate import Certificate, Check, Origin
from lrsearch.spec.config import StudyConfig


def test_in_80_columns_what_is_best_wraps_and_nothing_is_cut() -> None:
    bars, out = Bars(), io.StringIO()
    bars.stage("Searching", 26)
    bars.advance("rungs 26/18/14/11, front of 10, to params 14.3% at KL 0.308")
    Console(width=80, file=out).print(bars.rich.get_renderable())
    shown = " ".join(out.getvalue().split())
    assert " 1/26 " in shown
    assert "rungs 26/18/14/11" in shown
    assert shown.endswith("at KL 0.308")
    assert "…" not in shown


def test_the_clock_of_a_stage_that_was_done_before_stands_still() -> None:
    bars = Bars()
    bars.stage("Fitting layers", 54, 54)
    task = bars.rich.tasks[0]
    assert task.finished
    assert task.finished_time is not None


def test_stages_that_take_turns_have_one_bar_each() -> None:
    bars = Bars()
    for done in (0, 2, 4):
        bars.stage("Collecting statistics", 3)
        bars.stage("Fitting layers", 6, done)
        bars.advance()
    assert [(task.description, task.completed, task.total) for task in bars.rich.tasks] == [
        ("Collecting statistics", 0, 3), ("Fitting layers", 5, 6),
    ]  # fmt: skip
    bars.stage("Searching", 9)
    bars.stage("Timing models", 2)
    bars.stage("Fitting layers", 6)
    assert len(bars.rich.tasks) == 5


def test_every_step_goes_to_the_log(caplog) -> None:
    caplog.set_level(logging.INFO, "lrsearch")
    bars = Bars()
    bars.stage("Fitting", 2)
    bars.advance()
    bars.advance()
    bars.stage("Searching", 9, 3)
    bars.show("front of 2")
    bars.advance("front of 3")
    assert caplog.messages == [
        "Fitting: 0 of 2 done", "Fitting: 1 of 2 done", "Fitting: 2 of 2 done",
        "Searching: 3 of 9 done", "Searching: 3 of 9 done: front of 2", "Searching: 4 of 9 done: front of 3",
    ]


def test_a_certificate_is_a_table_in_a_terminal_and_markdown_elsewhere(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    certificate = Certificate(Origin(StudyConfig(name="mine")), (Check("params", 10.0, "equal", 10.0, True),))
    show_certificate(certificate)
    assert "| params | 10 | equal 10 |  | pass |" in capsys.readouterr().out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    show_certificate(certificate)
    shown = capsys.readouterr().out
    assert "|" not in shown
    assert "params" in shown
    assert "equal 10" in shown
