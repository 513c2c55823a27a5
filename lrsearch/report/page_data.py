"""What the report shows, as plain data."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from lrsearch.report.certificate import Certificate, shown
from lrsearch.report.figure import RECOVERED, STYLES, hover
from lrsearch.report.frame import points_of
from lrsearch.report.tables import readable
from lrsearch.search.decoder import Decoder
from lrsearch.search.parameters import ratios
from lrsearch.search.records import Record
from lrsearch.spec.cost import Cost, measured
from lrsearch.spec.front import hypervolume
from lrsearch.spec.metrics import METRICS, title
from lrsearch.spec.plan import LayerPlan
from lrsearch.spec.score import KL_FLOOR
from lrsearch.spec.units import divergence_name

NEAR = 1.0  # points with at most so many decades more divergence than the front's worst usable member are within the axes
MOST_PLANS = 400  # of which layer by layer is shown; the front's come first
MOST_STEPS = 200  # of the hypervolume's curve
HALF = 0.5  # of a layer's values: what damage is shown at


@dataclass(frozen=True)
class PageData:
    """What a study knows of itself, for the page.

    Attributes:
        header: (what, text).
        trials: as :attr:`lrsearch.workflows.result.Result.trials` has them.
        front: the same of the front.
        records: the plans; recovered ones are among the trials alone.
        choices: a table as text.
        decoder: the search space, if it can be read.
        finished: trial → when it was done.
        figures: section → plotly figures.
        unit: of the divergence.
    """

    header: Sequence[tuple[str, str]]
    trials: pd.DataFrame
    front: pd.DataFrame
    records: Sequence[Record]
    dense: Cost
    objectives: Sequence[str]
    limits: Mapping[str, float]
    choices: pd.DataFrame
    notes: Sequence[str]
    comparison: pd.DataFrame
    rungs: pd.DataFrame
    start: str
    decoder: Decoder | None = None
    finished: Mapping[int, datetime] = field(default_factory=dict)
    figures: Mapping[str, Sequence[go.Figure]] = field(default_factory=dict)
    certificates: Sequence[Certificate] = ()
    unit: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As the page's script reads it."""
        costs, volumes = measured(self.dense), self.comparison
        dense = {m: float(getattr(self.dense, m)) for m in costs}
        return {
            "header": list(self.header), "objectives": list(self.objectives), "floor": KL_FLOOR, "start": self.start, "unit": self.unit,
            "far": divergence_name(self.unit),
            "metrics": {
                m: {"title": title(m).partition(",")[0], "axis": title(m), "unit": METRICS[m].unit if m in METRICS else ""} for m in costs
            },
            "limits": {m: [v, v / (dense[m] or 1)] for m, v in self.limits.items()},
            "styles": [{"name": name, "color": color, "symbol": symbol} for name, (color, symbol) in STYLES.items()],
            "points": self._points(costs), "layers": self._layers(), "volume": self._volume(), "notes": list(self.notes),
            "choices": self.choices.rename(columns=lambda c: " " * c.count("%") + c).to_dict("records"),
            "comparison": volumes.assign(hypervolume=volumes.hypervolume.map("{:.4f}".format)).to_dict("records") if len(volumes) else [],
            "rungs": self.rungs.rename(columns={"finetune_steps": "finetune steps"}).to_dict("records"),
            "front": readable(self.front, self.unit).reset_index(names="#").to_dict("records"),
            "figures": {key: [json.loads(f.to_json()) for f in self.figures.get(key, ())] for key in ("latency", "fidelity")},
            "certificates": [_certificate(c, self.front) for c in self.certificates],
        }

    def _points(self, costs: Sequence[str]) -> list[dict[str, Any]]:
        plans = {r.number: r.plan for r in self.records}
        done = self.trials[self.trials.complete.astype(bool)].sort_values("on_front", ascending=False, kind="stable")
        usable = done[done.on_front.astype(bool) & ~done.at_chance.astype(bool)]
        worst = 10**NEAR * max(float(usable.divergence.max()) if len(usable) else np.inf, KL_FLOOR)
        made = []
        for place, r in enumerate(done.to_dict("records")):
            source = RECOVERED if r["recovered"] else r["source"]
            point = {
                "id": r["model"] if r["recovered"] else str(r["trial"]), "source": source, "front": r["on_front"],
                "at_chance": r["at_chance"], "near": r["divergence"] <= worst,
                "divergence": r["divergence"], "divergence_error": r["divergence_stderr"], "metric": 100 * r["metric"],
                "metric_error": 100 * r["metric_stderr"], "drop": 100 * r["metric_drop"], "model": r["model"] if r["on_front"] else "",
                "costs": {m: [float(r[m]), float(r[f"{m}_ratio"])] for m in costs},
                "about": hover(r, source, self.objectives[1], self.unit),
            }
            if self.decoder and place < MOST_PLANS and (plan := plans.get(r["trial"])) is not None:
                layers = self.decoder.costs.layers
                pairs = [ratios(layer, plan[layer.name]) for layer in layers]
                point |= {
                    "plan": [str(plan[layer.name]) for layer in layers], "ranks": [round(p[0], 3) for p in pairs],
                    "densities": [round(p[1], 3) for p in pairs],
                }
            made.append(point)
        return made

    def _layers(self) -> list[dict[str, Any]]:
        """A row per layer, in the network's order."""
        if self.decoder is None:
            return []
        costs, rows = self.decoder.costs, []
        for index, layer in enumerate(costs.layers):
            own, whole = costs.layer(layer, LayerPlan()), costs.dense
            mine = np.flatnonzero(self.decoder.layer == index)
            small = [c for c in mine if costs.layer(layer, self.decoder.choices[c][1]).params <= HALF * layer.numel]
            rows.append({
                "layer": layer.name, "weight": "×".join(map(str, layer.weight_shape)), "params": f"{layer.numel / whole.params:.1%}",
                "bytes": f"{own.weight_bytes / whole.weight_bytes:.1%}", "MACs": f"{own.macs / whole.macs:.1%}" if whole.macs else "",
                **({"latency": f"{own.latency_ms / whole.latency_ms:.1%}"} if whole.latency_ms else {}),
                "damage": f"{self.decoder.damage[small].min():.2g}" if small else "", "choices": len(mine),
            })
        return rows

    def _volume(self) -> dict[str, list[Any]]:
        """Hypervolume of the first 1, 2, … finished plans, with the minutes since the first began."""
        done = sorted((r for r in self.records if r.complete), key=lambda r: r.number)
        points = points_of(done, self.dense, self.objectives)
        if not len(points):
            return {"plans": [], "volume": [], "minutes": []}
        reference = np.r_[points[:, 0].max() + 1e-9, np.full(len(self.objectives) - 1, 1.0)]
        steps = sorted({round(v) for v in np.linspace(1, len(done), min(MOST_STEPS, len(done)))})
        first = min(self.finished.values(), default=None)
        times = [self.finished.get(done[n - 1].number) for n in steps]
        minutes = [(t - first).total_seconds() / 60 if t and first else None for t in times]
        return {"plans": steps, "volume": [hypervolume(points[:n], reference) for n in steps], "minutes": minutes}


def _certificate(certificate: Certificate, front: pd.DataFrame) -> dict[str, Any]:
    """Which model it is of, whether it passed, and its checks."""
    rows = [
        {"check": c.name, "found": shown(c.found), "to be": f"{c.rule} {shown(c.wanted)}", "result": "passed" if c.passed else "FAILED"}
        for c in certificate.checks
    ] + [{"check": name, "found": "", "to be": "", "result": f"not checked: {why}"} for name, why in certificate.unchecked.items()]
    return {"title": f"{_certified(certificate, front)}: {'passed' if certificate.passed else 'FAILED'}", "rows": rows}


def _certified(certificate: Certificate, front: pd.DataFrame) -> str:
    """The row of the front that ``certificate`` is of, as the front is now."""
    model = certificate.origin.model
    if not model:  # of a certificate that does not say
        return certificate.origin.config.name
    rows = front.index[front.model == model]
    return f"row {rows[0]} of the front, {model}" if len(rows) else f"{model}, which is not on the front now"
