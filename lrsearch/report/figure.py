"""The front as a plotly figure: facts first, drawing second."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lrsearch.report.summary import few_digits
from lrsearch.search.records import DENSE_INT8
from lrsearch.spec.metrics import title as axis_title
from lrsearch.spec.score import KL_FLOOR
from lrsearch.spec.units import divergence_name, in_unit

RECOVERED = "recovered"
STYLES = {
    "search": ("#1f77b4", "circle"), "uniform": ("#7f7f7f", "x-thin-open"), "sparse-only": ("#2ca02c", "triangle-up-open"),
    "low-rank-only": ("#d62728", "triangle-down-open"), "knapsack": ("#ff7f0e", "square-open"), "dense": ("#000000", "star"),
    DENSE_INT8: ("#8c564b", "star-open"),
    RECOVERED: ("#9467bd", "diamond"),
}


class ShownFigure(go.Figure):  # type: ignore[misc]  # plotly is not typed
    """A plotly figure that shows a picture where nothing renders plotly's own: in a notebook as a page, or on GitHub.

    Args:
        figure: what is shown elsewhere.
        picture: the same as SVG.
    """

    def __init__(self, figure: go.Figure, picture: str) -> None:
        super().__init__(figure)
        self._picture = picture

    def _repr_mimebundle_(self, *args: Any, **how: Any) -> dict[str, Any]:
        return {**super()._repr_mimebundle_(*args, **how), "image/svg+xml": self._picture}

    def _ipython_display_(self) -> None:
        bundle = self._repr_mimebundle_()
        if len(bundle) == 1:  # shown outside of the notebook, or not at all
            super()._ipython_display_()
            return
        from IPython.display import display

        display(bundle, raw=True)


@dataclass(frozen=True)
class Series:
    """One legend entry: the points of one source, and those of the front."""

    name: str
    points: pd.DataFrame


def series(trials: pd.DataFrame) -> list[Series]:
    """The complete trials by source, in the order of the legend; recovered models have an entry of their own."""
    done = trials[trials.complete.astype(bool)]
    source = done.source.mask(done.recovered.astype(bool), RECOVERED)
    return [Series(s, done[source == s]) for s in STYLES if (source == s).any()]


def front_figure(trials: pd.DataFrame, objectives: Sequence[str], title: str, unit: str = "") -> go.Figure:
    """Divergence (logarithmic) and the task metric against every cost among the objectives.

    Args:
        trials: as :func:`lrsearch.report.frame.trials_frame` makes it.
        objectives: quality first, then costs: one column of panels each.
        unit: of the divergence.
    """
    costs = list(objectives[1:])
    figure = make_subplots(rows=2, cols=len(costs), shared_xaxes="columns", vertical_spacing=0.06)
    for col, cost in enumerate(costs, 1):
        for entry in series(trials):
            _add(figure, entry, cost, col, unit)
        members = trials[trials.on_front.astype(bool) & ~trials.recovered.astype(bool)].sort_values(cost)
        line = {"color": "#1f77b4", "width": 1}
        for row, y in ((1, members.divergence.clip(lower=KL_FLOOR)), (2, 100 * members.metric)):
            figure.add_scatter(
                x=100 * members[f"{cost}_ratio"], y=y, mode="lines", line=line, name="front", legendgroup="front",
                showlegend=row == 1 and col == 1, hoverinfo="skip", row=row, col=col,
            )
        figure.update_xaxes(title_text=axis_title(cost), row=2, col=col)
    figure.update_yaxes(title_text=in_unit(f"{divergence_name(unit)} from dense", unit), type="log", exponentformat="power", row=1, col=1)
    figure.update_yaxes(type="log", row=1)
    figure.update_yaxes(title_text="task metric, %", row=2, col=1)
    figure.update_layout(title=title, template="plotly_white", height=760, width=560 * len(costs) + 260, hovermode="closest")
    return figure


def _shown(cost: float) -> str:
    return f"{cost:,.3f}" if isinstance(cost, float) else f"{cost:,}"


def hover(row: Mapping[Hashable, Any], source: str, cost: str, unit: str) -> str:
    """What is said of a trial where the pointer is over it; lines joined by ``<br>``."""
    known = "" if np.isnan(row["metric"]) else f"<br>metric {row['metric']:.2%} ({0.0 - 100 * row['metric_drop']:+.2f} points)"
    far, error = few_digits(row["divergence"]), few_digits(row["divergence_stderr"])
    return (
        f"trial {row['trial']} ({source})<br>{cost} {_shown(row[cost])} ({row[f'{cost}_ratio']:.1%})"
        f"<br>{divergence_name(unit)} {far} ± {error}{known}<br>rung {row['rung']}, {row['finetune_steps']} finetune steps"
    )


def _add(figure: go.Figure, entry: Series, cost: str, col: int, unit: str) -> None:
    color, symbol = STYLES[entry.name]
    p = entry.points
    texts = [hover(r, entry.name, cost, unit) for r in p.to_dict("records")]
    for row, y in ((1, p.divergence.clip(lower=KL_FLOOR)), (2, 100 * p.metric)):
        figure.add_scatter(
            x=100 * p[f"{cost}_ratio"], y=y, mode="markers", name=entry.name, legendgroup=entry.name,
            showlegend=row == 1 and col == 1, hovertext=texts, hoverinfo="text", row=row, col=col,
            marker={"color": color, "symbol": symbol, "size": 8 if entry.name == "search" else 12, "line": {"width": 2, "color": color}},
        )
