"""A study in a few lines: the table of those models that a person would choose from, what its columns mean, what to do next."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lrsearch.report.choices import Choices
from lrsearch.search.records import DENSE
from lrsearch.spec.cost import Cost
from lrsearch.spec.score import Score
from lrsearch.spec.units import divergence_name

Shown = Callable[[float], str]
_STEPS = (("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0))
LEAST = 5e-4  # that four decimals tell
COLUMNS = "% are of dense"
_METRIC = "metric and drop (in points) are of the score data, "
_MACS = "MACs of an S with single zeros are counted as a dense runtime executes them, so beside L they may exceed 100 %."


def choice_table(found: Choices, dense: Cost, baseline: Score, objectives: Sequence[str], unit: str = "") -> pd.DataFrame:
    """The dense model, then the rows of ``found``, as text: absolute costs, each beside its share of the dense model's.

    Args:
        unit: of the divergence.
    """
    timed, far = bool(dense.latency_ms), divergence_name(unit)
    costs = {
        "params": ("params", counted), "size": ("weight_bytes", sized),
        **({"latency": ("latency_ms", "{:.3f} ms".format)} if timed else {"MACs": ("macs", counted)}),
        **{m: (m, "{:.5g}".format) for m in objectives[1:] if m not in ("params", "weight_bytes", "latency_ms", "macs")},
    }
    whole = _costs(costs, lambda m: getattr(dense, m), None)
    rows = [{"#": "dense", "metric": percent(baseline.metric), "drop": "", far: "", **whole, "for": ""}]
    rest = found.rows[~((found.rows.source == DENSE) & (found.rows.params_ratio == 1))]  # that is the first row
    for index, r in zip(rest.index, rest.to_dict("records"), strict=True):
        lost = "" if np.isnan(r["metric_drop"]) else f"{100 * r['metric_drop']:.2f}"
        rows.append({
            "#": str(index), "metric": percent(r["metric"]), "drop": lost, far: few_digits(r["divergence"]),
            **_costs(costs, r.__getitem__, r), "for": ("recovered, " * bool(r["recovered"]) + r["why"]).strip(", "),
        })
    table = pd.DataFrame(rows)
    return table.drop(columns=[c for c in ("metric", "drop", "for") if (table[c] == "").all()])


def _costs(
    costs: Mapping[str, tuple[str, Shown]], value: Callable[[str], float], row: Mapping[Hashable, Any] | None,
) -> dict[str, str]:
    cells: dict[str, str] = {}
    for heading, (metric, shown) in costs.items():
        cells |= {heading: shown(value(metric)), f"{heading} %": "" if row is None else f"{row[f'{metric}_ratio']:.1%}"}
    return cells


def notes(found: Choices, members: int, unit: str = "") -> list[str]:
    """What a reader of :func:`choice_table` should know, a line each; ``unit`` is that of the divergence."""
    left = found.left_out
    guess = f"{left} of the front's {members} models {'are' if left > 1 else 'is'} no better than chance, and left out here."
    return [
        f"{'' if found.rows.metric.isna().all() else _METRIC}{COLUMNS}{f'; {divergence_name(unit)} in {unit}' if unit else ''}.",
        *([found.told] if found.told else []),
        *([_MACS] if len(found.rows) and (found.rows.macs_ratio > 1).any() else []),
        *([guess] if left else []),
    ]


def percent(share: float | None) -> str:
    """``97.65%``; empty if there is none."""
    return "" if share is None or np.isnan(share) else f"{share:.2%}"


def few_digits(divergence: float) -> str:
    """``0.0123``, or ``3e-05`` where four decimals do not tell it from 0."""
    return f"{divergence:.4f}" if divergence >= LEAST or not divergence else f"{divergence:.0e}"


def counted(number: float) -> str:
    """``1.43 M`` of a count, to three digits."""
    unit, size = next((u, s) for u, s in _STEPS if abs(number) >= s or s == 1)
    return f"{number / size:.3g} {unit}".strip()


def sized(bytes_: float) -> str:
    """``57.1 KiB`` or ``2.24 MiB``, to three digits."""
    return f"{bytes_ / 2**20:.3g} MiB" if bytes_ >= 1000 * 2**10 else f"{bytes_ / 2**10:.3g} KiB"
