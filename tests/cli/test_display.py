import io

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
