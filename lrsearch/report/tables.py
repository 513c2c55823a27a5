"""The front as a table that a person reads."""

import numpy as np
import pandas as pd

from lrsearch.report.summary import few_digits
from lrsearch.spec.units import divergence_name, in_unit

_COLUMNS = {
    "trial": "trial", "source": "source", "rung": "rung", "metric": "metric", "metric_stderr": "± points",
    "metric_drop": "drop, points", "divergence": "divergence", "divergence_stderr": "± divergence",
    "finetune_steps": "finetune steps", "recovered": "recovered", "params": "params", "params_ratio": "of dense", "macs": "MACs",
    "macs_ratio": "of dense ", "nonzero_macs": "MACs without zeros", "weight_bytes": "weight bytes", "weight_bytes_ratio": " of dense",
    "latency_ms": "latency, ms", "latency_ms_ratio": " of dense ", "measured_ms": "measured, ms", "measured_ms_ratio": " of dense  ",
    "sparse_layers": "sparse layers", "low_rank_layers": "low-rank layers", "low_rank_sparse_layers": "L+S layers", "model": "model",
}


def readable(front: pd.DataFrame, unit: str = "") -> pd.DataFrame:
    """The front's columns that a person reads, formatted; ``unit`` is that of the divergence."""
    more = [str(m) for m in front if f"{m}_ratio" in front and m not in _COLUMNS]  # metrics that were registered besides
    far = divergence_name(unit)
    known = {**_COLUMNS, "divergence": in_unit(far, unit), "divergence_stderr": f"± {far}"}
    names = {**known, **{column: heading for m in more for column, heading in ((m, m), (f"{m}_ratio", f"{m}, of dense"))}}
    idle = {"recovered"} if not front.get("recovered", pd.Series(dtype=bool)).any() else set()  # says nothing of any
    shown = front[[c for c in names if c in front and c not in idle]].copy()
    shown["metric"] = (100 * front.metric).map("{:.2f}%".format)
    shown["metric_stderr"] = ["" if np.isnan(v) else f"{100 * v:.2f}" for v in front.metric_stderr]
    shown["metric_drop"] = (100 * front.metric_drop).map("{:.2f}".format)
    for column in ("divergence", "divergence_stderr"):
        shown[column] = front[column].map(few_digits)
    for column in ("params", "macs", "nonzero_macs", "weight_bytes"):
        shown[column] = front[column].map("{:,}".format)
    for column in more:
        shown[column] = front[column].map("{:.5g}".format, na_action="ignore").fillna("")
    for column in [c for c in names if c in shown and c.endswith("_ratio")]:
        shown[column] = (100 * front[column]).map("{:.1f}%".format, na_action="ignore").fillna("")
    for column in [c for c in _COLUMNS if c in shown and c.endswith("_ms")]:
        shown[column] = front[column].map("{:.3f}".format, na_action="ignore").fillna("")
    return shown.rename(columns=names)
