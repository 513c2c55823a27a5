"""The front as a small picture, SVG without a script: for notebooks' own display of a result, and for documents."""

import html
import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from lrsearch.report.figure import RECOVERED, STYLES
from lrsearch.spec.metrics import title as axis_title
from lrsearch.spec.score import KL_FLOOR
from lrsearch.spec.units import divergence_name, in_unit

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 560, 300, 52, 42, 24  # pixels
LETTER = 6  # and of a letter


def front_picture(trials: pd.DataFrame, objectives: Sequence[str], title: str = "", unit: str = "") -> str:
    """Divergence, or the metric where that is the objective, against the first cost: finished plans better than chance, and the front."""
    done = trials[trials.complete.astype(bool)]
    done = done[~done.at_chance.astype(bool)] if not done.at_chance.all() else done
    if not len(done):
        return ""
    far = objectives[0] == "divergence"
    name = divergence_name(unit) if far else "metric"
    x, y = 100 * done[f"{objectives[1]}_ratio"], np.log10(done.divergence.clip(lower=KL_FLOOR)) if far else 100 * done.metric
    source = done.source.mask(done.recovered.astype(bool), RECOVERED)
    across, up = _scale(x, LEFT, WIDTH - 12), _scale(y, HEIGHT - BOTTOM, TOP)
    marks = "".join(
        f'<circle cx="{across(a):.1f}" cy="{up(b):.1f}" r="{4 if s == "search" else 3}" fill="{_color(s)}" '
        f'fill-opacity="{0.9 if m else 0.35}"><title>{html.escape(s)}: {a:.1f} %, {name} {10**b if far else b:.3g}</title></circle>'
        for a, b, s, m in zip(x, y, source, done.on_front.astype(bool), strict=True)
    )
    members = done[done.on_front.astype(bool) & ~done.recovered.astype(bool)].sort_values(objectives[1]).index
    line = " ".join(f"{across(x[i]):.1f},{up(y[i]):.1f}" for i in members)
    ticks = [(v, f"{v:g}") for v in _ticks(x.min(), x.max())]
    rises = _decades(y.min(), y.max()) if far else [(v, f"{v:g}") for v in _ticks(y.min(), y.max())]
    lines = "".join(
        f'<line x1="{LEFT}" x2="{WIDTH - 12}" y1="{up(v):.1f}" y2="{up(v):.1f}" stroke="#8884"/>'
        f'<text x="{LEFT - 6}" y="{up(v) + 4:.1f}" text-anchor="end">{label}</text>' for v, label in rises
    ) + "".join(f'<text x="{across(v):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{label}</text>' for v, label in ticks)
    names = [s for s in STYLES if (source == s).any()]
    places = LEFT + np.cumsum([0, *(22 + LETTER * len(s) for s in names)])[:-1]
    legend = "".join(
        f'<circle cx="{at + 4}" cy="10" r="4" fill="{_color(s)}"/><text x="{at + 12}" y="14">{s}</text>'
        for s, at in zip(names, places, strict=True)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'style="max-width:100%;height:auto" role="img" aria-label="{html.escape(title or "front")}" '
        f'font-family="system-ui, sans-serif" font-size="11" fill="#777">{lines}'
        f'<polyline points="{line}" fill="none" stroke="{STYLES["search"][0]}"/>{marks}{legend}'
        f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{html.escape(axis_title(objectives[1]))}</text>'
        f'<text x="12" y="{HEIGHT / 2}" transform="rotate(-90 12 {HEIGHT / 2})" text-anchor="middle">'
        f'{html.escape(in_unit(f"{name} from dense", unit)) if far else "task metric, %"}</text></svg>'
    )


def _color(source: str) -> str:
    """Of a source, also on a dark ground."""
    return STYLES[source][0].replace("#000000", "#bcbd22")


def _scale(values: pd.Series, start: float, end: float) -> Callable[[float], float]:
    low, high = float(values.min()), float(values.max())
    pad = 0.04 * ((high - low) or 1)
    return lambda v: start + (v - low + pad) / (high - low + 2 * pad) * (end - start)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers, four to nine of them."""
    rough = (high - low or 1) / 5
    step = next(s for e in (math.floor(math.log10(rough)),) for s in (10.0**e, 2 * 10.0**e, 5 * 10.0**e, 10 * 10.0**e) if s >= rough)
    return [round(k * step, 10) for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _decades(low: float, high: float) -> list[tuple[float, str]]:
    """Powers of ten from 10^low to 10^high, and where these are few 2 and 5 times them."""
    powers = range(math.ceil(low), math.floor(high) + 1)
    if len(powers) > 2:
        return [(p, f"10{_raised(p)}") for p in powers]
    steps = [(p + math.log10(k), k * 10.0**p) for p in range(math.floor(low), math.ceil(high)) for k in (1, 2, 5)]
    return [(at, f"{v:g}") for at, v in steps if low <= at <= high]


def _raised(power: int) -> str:
    return str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
