"""Latency as pictures: the staircases of the ranks, and what was predicted of the front against what was measured."""

import re
from collections import defaultdict
from dataclasses import dataclass

import pandas as pd
import plotly.colors
import plotly.graph_objects as go

from lrsearch.latency.micro_models import shape_of
from lrsearch.latency.table import LatencyTable

COLORS = plotly.colors.qualitative.D3
MOST_LAYERS = len(COLORS)
DASHES = ("solid", "dot", "dash", "dashdot", "longdash")


@dataclass(frozen=True)
class Staircase:
    """One distinct layer in one format: milliseconds by rank, beside those of the dense layer."""

    layer: str
    format: str
    ranks: tuple[tuple[int, ...], ...]
    ms: tuple[float, ...]
    dense: float


def staircases(table: LatencyTable) -> list[Staircase]:
    """Those of the layers that take longest, by falling latency of the dense layer."""
    found = []
    slowest = sorted(table.entries, key=lambda s: -table.entries[s]["dense"].ms)
    for signature in slowest:
        series: dict[str, list[tuple[tuple[int, ...], float]]] = defaultdict(list)
        for choice, timing in table.entries[signature].items():
            if parts := re.fullmatch(r"(\S+) rank ([\d-]+)", choice):
                series[parts[1]].append((tuple(map(int, parts[2].split("-"))), timing.ms))
        for form, points in series.items():
            ranks, ms = zip(*sorted(points), strict=True)
            found.append(Staircase(_short(signature), form, ranks, ms, table.entries[signature]["dense"].ms))
    layers = list(dict.fromkeys(s.layer for s in found))[:MOST_LAYERS]
    return [s for s in found if s.layer in layers]


def _short(signature: str) -> str:
    """``16x8x3x3 on 8x32x32``, with a stride if there is one, and whether what feeds it is timed with it."""
    own, _, feeding = signature.partition(", fed by ")
    stride = re.search(r"stride (\d+x\d+)", own)
    strided = f", stride {stride[1]}" if stride and stride[1] != "1x1" else ""
    return f"{own.split()[1]} on {'x'.join(map(str, shape_of(own)[1:]))}{strided}{' with its feed' if feeding else ''}"


def staircase_figure(table: LatencyTable) -> go.Figure:
    """Latency of low-rank layers, in percent of the dense layer, against the rank."""
    figure, shown = go.Figure(), staircases(table)
    layers, formats = (list(dict.fromkeys(getattr(s, key) for s in shown)) for key in ("layer", "format"))
    for s in shown:
        line = {"dash": DASHES[formats.index(s.format) % len(DASHES)], "color": COLORS[layers.index(s.layer) % len(COLORS)]}
        about = [f"{s.format} rank {'-'.join(map(str, r))}: {ms:.4f} ms" for r, ms in zip(s.ranks, s.ms, strict=True)]
        figure.add_scatter(
            x=[rank[0] for rank in s.ranks], y=[100 * ms / s.dense for ms in s.ms], mode="lines+markers", name=f"{s.layer}, {s.format}",
            line=line, hovertext=[f"{s.layer}<br>{text}<br>dense {s.dense:.4f} ms" for text in about], hoverinfo="text",
        )
    figure.add_hline(y=100, line={"color": "#000000", "width": 1, "dash": "dot"})
    c = table.conditions
    title = f"Latency by rank: {c.backend} {c.version}, threads {c.threads}, batch {c.batch}, {c.cpu}"
    figure.update_layout(title=title, template="plotly_white", height=560, width=1080)
    figure.update_xaxes(title_text="rank (of several, the first)")
    figure.update_yaxes(title_text="latency, % of the dense layer", rangemode="tozero")
    return figure


def prediction_figure(front: pd.DataFrame) -> go.Figure:
    """Predicted against measured latency of the members of the front that were measured, both as shares of the dense model's, which
    was measured beside each: a processor's clock moves between the table and the front; ``measured_ms_ratio`` is NaN for others."""
    points = front[front.measured_ms_ratio.notna()]
    predicted, measured = 100 * points.latency_ms_ratio, 100 * points.measured_ms_ratio
    error = (predicted / measured - 1).abs().mean()
    ends = [min(predicted.min(), measured.min()), max(predicted.max(), measured.max())]
    figure = go.Figure()
    figure.add_scatter(x=ends, y=ends, mode="lines", line={"color": "#7f7f7f", "width": 1}, name="equal", hoverinfo="skip")
    figure.add_scatter(
        x=measured, y=predicted, mode="markers", name="front", marker={"size": 9, "color": "#1f77b4"},
        hovertext=[f"trial {r['trial']}<br>predicted {r['latency_ms_ratio']:.1%} of dense, {r['latency_ms']:.3f} ms<br>"
                   f"measured {r['measured_ms_ratio']:.1%}, {r['measured_ms']:.3f} ms" for r in points.to_dict("records")],
        hoverinfo="text",
    )
    figure.update_layout(
        title=f"Latency of the front: mean absolute error {error:.1%} (n = {len(points)})", template="plotly_white", height=520, width=640,
    )
    figure.update_xaxes(title_text="measured, % of the dense model beside it")
    figure.update_yaxes(title_text="predicted by the table, % of dense")
    return figure
