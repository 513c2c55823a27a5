import io
import logging

from rich.console import Console

from lrsearch.cli.display import Bars


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
