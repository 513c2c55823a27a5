"""The front as one HTML file that opens offline."""

import html
from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1200px; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; font-size: 13px; margin: 0.5rem 0 2rem; }
th, td { padding: 3px 10px; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th { background: #f5f5f5; }
.wide { overflow-x: auto; }
"""
_LATENCY = """<h2>Latency</h2>
<p>Each distinct layer in every form, alone or with what feeds it where that follows its columns, timed on the backend; a
plan's latency is that of the dense model less what its layers save. A layer that is slower than dense in its form is deployed
as one dense layer. Measured are whole models of the front, deployed.</p>"""
_RUNGS = """<h2>How far the plans went</h2>
<p>At each rung the best of the plans of similar cost are finetuned further. The dense model and, near each of their budgets,
the best control always go on; only what reached the last rung is on the front. What its finetune made worse counts as it was
before, with 0 finetune steps.</p>"""
_COLUMNS = {
    "trial": "trial", "source": "source", "rung": "rung", "metric": "metric", "metric_stderr": "± points",
    "metric_drop": "drop, points", "kl": "KL, nats", "kl_stderr": "± KL",
    "finetune_steps": "finetune steps", "recovered": "recovered", "params": "params", "params_ratio": "of dense", "macs": "MACs",
    "macs_ratio": "of dense ", "nonzero_macs": "MACs without zeros", "weight_bytes": "weight bytes", "weight_bytes_ratio": " of dense",
    "latency_ms": "latency, ms", "latency_ms_ratio": " of dense ", "measured_ms": "measured, ms", "measured_ms_ratio": " of dense  ",
    "sparse_layers": "sparse layers", "low_rank_layers": "low-rank layers", "low_rank_sparse_layers": "L+S layers", "model": "model",
}


def readable(front: pd.DataFrame) -> pd.DataFrame:
    """The front's columns that a person reads, formatted."""
    more = [str(m) for m in front if f"{m}_ratio" in front and m not in _COLUMNS]  # metrics that were registered besides
    names = {**_COLUMNS, **{column: heading for m in more for column, heading in ((m, m), (f"{m}_ratio", f"{m}, of dense"))}}
    shown = front[[c for c in names if c in front]].copy()
    shown["metric"] = (100 * front.metric).map("{:.2f} %".format)
    shown["metric_stderr"] = ["" if np.isnan(v) else f"{100 * v:.2f}" for v in front.metric_stderr]
    shown["metric_drop"] = (100 * front.metric_drop).map("{:.2f}".format)
    for column in ("kl", "kl_stderr"):
        shown[column] = front[column].map("{:.4f}".format)
    for column in ("params", "macs", "nonzero_macs", "weight_bytes"):
        shown[column] = front[column].map("{:,.0f}".format, na_action="ignore").fillna("")
    for column in more:
        shown[column] = front[column].map("{:.5g}".format, na_action="ignore").fillna("")
    for column in [c for c in names if c in shown and c.endswith("_ratio")]:
        shown[column] = (100 * front[column]).map("{:.1f} %".format, na_action="ignore").fillna("")
    for column in [c for c in _COLUMNS if c in shown and c.endswith("_ms")]:
        shown[column] = front[column].map("{:.3f}".format, na_action="ignore").fillna("")
    return shown.rename(columns=names)


def page(
    name: str, figure: go.Figure, front: pd.DataFrame, comparison: pd.DataFrame, rungs: pd.DataFrame, latency: Sequence[go.Figure] = (),
    dense_int8: pd.DataFrame | None = None,
) -> str:
    """A self-contained page: figure, front, what the search added to its controls, how many plans reached which of the
    ``rungs``, if there are several, and the pictures of ``latency``; below the front the dense model in int8, if it was measured."""
    reference = ", ".join(f"{v:.3g}" for v in comparison.attrs.get("reference", []))
    rows = front if dense_int8 is None or not len(dense_int8) else pd.concat([front, dense_int8[[c for c in front if c in dense_int8]]])
    table = readable(rows).to_html(border=0) if len(front) else "<p>No complete trial.</p>"
    title = html.escape(name)
    halving = _RUNGS + rungs.rename(columns=_COLUMNS).to_html(border=0, index=False) if len(rungs) > 1 else ""
    pictures = "".join(f.to_html(full_html=False, include_plotlyjs=False) for f in latency)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}: front</title><style>{_STYLE}</style></head><body>
{figure.to_html(full_html=False, include_plotlyjs=True)}
<h2>Front</h2>
<p>Stored values, zeros left out; MACs are multiply-accumulates per example as a dense runtime executes them
(FLOPs are twice that); weight bytes are the size of the file. Drops are against the dense model
on the same examples.</p>
<div class="wide">{table}</div>
<h2>What the search added</h2>
<p>Hypervolume of each source's own plans, over log10 of the KL (or the metric, negated) and the costs as ratios of dense; reference
point ({reference}). More plans cover more: compare the plan counts too. What all have beyond all controls is what the search added.</p>
{comparison.to_html(border=0, index=False, float_format="{:.4f}".format)}
{halving}
{pictures and _LATENCY}{pictures}
</body></html>
"""
