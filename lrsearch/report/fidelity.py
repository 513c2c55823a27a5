"""Kendall's tau between a rung's ranking of plans and that after a long finetune, as a table and a figure."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots
from scipy.stats import kendalltau

from lrsearch.spec.atomic import read_json
from lrsearch.spec.config import StudyConfig
from lrsearch.spec.cost import Cost
from lrsearch.spec.score import KL_FLOOR, renamed
from lrsearch.spec.units import divergence_name
from lrsearch.study.study_folder import StudyFolder

LEAST = 4  # plans, below which a rank correlation says nothing
Floats = NDArray[np.float64]


def quality(score: Mapping[str, float], objective: str) -> float:
    """What is compared, lower is better: log10 of the divergence, floored at 1e-4, or the negated metric."""
    return float(np.log10(max(renamed(score)["divergence"], KL_FLOOR))) if objective == "divergence" else -score["metric"]


def fidelity_frame(rows: Sequence[Mapping[str, Any]], objectives: Sequence[str], dense: Mapping[str, float]) -> pd.DataFrame:
    """A row per plan: ``trial``, ``cost`` as a ratio of dense, ``rung 0``, ``rung 1``, …, and ``long``, all as :func:`quality`.

    Args:
        rows: as :meth:`lrsearch.study.fidelity.Comparison.run` returns them.
        objectives: quality first, then costs, of which the first counts.
        dense: metric → cost of the dense model.
    """
    cost = objectives[1]
    return pd.DataFrame([
        {
            "trial": r["trial"], "cost": r["cost"][cost] / dense[cost],
            **{f"rung {k}": quality(s, objectives[0]) for k, s in enumerate(r["rungs"])}, "long": quality(r["long"], objectives[0]),
        }
        for r in rows
    ])


def beside_cost(cost: Floats, values: Floats) -> Floats:
    """What a parabola in log cost, fitted by least squares, leaves of ``values``; a line below 6 plans."""
    x = np.log(cost)
    design = np.vander(x - x.mean(), 3 if len(x) >= 6 else 2)
    rest: Floats = values - design @ np.linalg.lstsq(design, values, rcond=None)[0]
    return rest


def taus(frame: pd.DataFrame) -> pd.DataFrame:
    """A row per rung: ``tau`` over all plans, which the costs alone make high, and ``tau_beside_cost`` with its p-value:
    of what is left of both scores after :func:`beside_cost`."""
    cost, long = frame.cost.to_numpy(), frame.long.to_numpy()
    rows = []
    for name in [c for c in frame if str(c).startswith("rung ")]:
        values = frame[name].to_numpy()
        whole, rest = kendalltau(values, long), kendalltau(beside_cost(cost, values), beside_cost(cost, long))
        rows.append({"rung": int(str(name)[5:]), "tau": whole.statistic, "tau_beside_cost": rest.statistic, "p": rest.pvalue})
    return pd.DataFrame(rows)


def fidelity_figures(study: StudyFolder, config: StudyConfig, dense: Cost, unit: str = "") -> list[go.Figure]:
    """A figure for each long finetune that ``lrsearch fidelity`` made of some plans in ``study``; none of a damaged file, which it makes
    anew."""
    figures = []
    for steps, rows in read_json(study.fidelity).items():
        with suppress(KeyError, TypeError, AttributeError, ValueError):
            found = [{"trial": int(trial), **row} for trial, row in rows.items()]
            if len(found) < LEAST:
                continue
            frame = fidelity_frame(found, config.objectives, dense.to_dict())
            figures.append(fidelity_figure(frame, f"rungs against {steps} steps", axis_of(config.objectives, unit)))
    return figures


def axis_of(objectives: Sequence[str], unit: str = "") -> str:
    """What :func:`quality` is called on an axis."""
    return f"log10 {divergence_name(unit)}" if objectives[0] == "divergence" else "-metric"


def fidelity_figure(frame: pd.DataFrame, title: str, axis: str) -> go.Figure:
    """Each rung's score against that after the long finetune: as they are above, beside what their cost explains below."""
    rungs, found = [c for c in frame if str(c).startswith("rung ")], taus(frame)
    shown = [
        [f"{rung}: tau {t.tau:.2f}" for rung, t in zip(rungs, found.itertuples(), strict=True)],
        [f"beside cost: tau {t.tau_beside_cost:.2f} (p {t.p:.2g})" for t in found.itertuples()],
    ]
    figure = make_subplots(rows=2, cols=len(rungs), subplot_titles=[*shown[0], *shown[1]], vertical_spacing=0.14)
    cost = frame.cost.to_numpy()
    hover = [f"trial {t}, cost {c:.1%}" for t, c in zip(frame.trial, cost, strict=True)]
    for col, rung in enumerate(rungs, 1):
        pair = frame[rung].to_numpy(), frame.long.to_numpy()
        for row, (x, y) in ((1, pair), (2, [beside_cost(cost, v) for v in pair])):
            marker = {"color": 100 * cost, "colorscale": "Viridis", "showscale": row == col == 1, "colorbar": {"title": "cost, %"}}
            figure.add_scatter(x=x, y=y, mode="markers", marker=marker, hovertext=hover, hoverinfo="text", row=row, col=col)
    figure.update_xaxes(title_text=f"{axis} at the rung", row=2)
    figure.update_yaxes(title_text=f"{axis} after the long finetune", col=1)
    figure.update_layout(title=title, template="plotly_white", height=720, width=340 * len(rungs) + 160, showlegend=False)
    return figure
