"""What the scripts of this folder share: a search for each family of choices at each budget, a table, and the file of results."""

import argparse
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

import lrsearch
from lrsearch.latency.runner import cpu
from lrsearch.search.records import DENSE

RESULTS = Path(__file__).parents[1] / "results" / "real_models.txt"
ARMS = {"any family": ["sparse", "low-rank", "low-rank+sparse"], "S alone": ["sparse"], "L alone": ["low-rank"]}
FEW = {"rules": [{"families": ["sparse", "low-rank"], "density": {"min": 0.1, "max": 0.3, "steps": 2},
                  "rank_ratio": {"min": 0.1, "max": 0.2, "steps": 2}}]}  # what layers may become in a quick run
Table = list[dict[str, Any]]


@dataclass(frozen=True)
class Subject:
    """A model, its data, and what is asked of it.

    Attributes:
        ratios: budgets, as shares of the dense model.
        cost: what is limited.
        metric: what the column of quality is, in words; empty where there is none.
        settings: further ones of :func:`lrsearch.search`.
    """

    name: str
    model: nn.Module
    calibration: Any
    score: Any
    ratios: Sequence[float]
    metric: str
    cost: str = "weight_bytes"
    settings: dict[str, Any] = field(default_factory=dict)


def compared(subject: Subject, trials: int, quick: bool) -> Table:
    """For each budget and family the plan of least divergence among the controls at that budget and ``trials`` of the sampler's."""
    rows: Table = []
    settings, trials = ({**subject.settings, "space": FEW}, 1) if quick else (subject.settings, trials)
    for ratio in subject.ratios:
        for arm in list(ARMS)[:1] if quick else ARMS:
            began = time.monotonic()
            row = {"model": subject.name, "budget": f"{ratio:.0%} of {subject.cost}", "choices": arm}
            with tempfile.TemporaryDirectory() as folder:
                try:
                    result = lrsearch.search(
                        subject.model, calibration=subject.calibration, score=subject.score,
                        budget=lrsearch.Budget(**{subject.cost: ratio}),
                        out=Path(folder) / "study", objectives=["divergence", subject.cost], **settings,
                        search={"trials": trials, "families": ARMS[arm], "lowest": 0.95 * ratio, "control_points": 1},
                    )
                except lrsearch.LrsearchError as error:
                    rows.append({**row, "refused": str(error)})
                    continue
                rows.append({**row, **_best(result, subject), "seconds": round(time.monotonic() - began)})
    return rows


def _best(result: lrsearch.Result, subject: Subject) -> dict[str, Any]:
    """The plan of least divergence; all are within the budget."""
    plans = result.trials[result.trials.source != DENSE]
    best = plans.loc[plans.divergence.idxmin()]
    found = {"kept": best[f"{subject.cost}_ratio"], "params": best.params_ratio}
    found |= {"divergence": best.divergence, "stderr": best.divergence_stderr}
    kinds = {k: int(best[f"{k}_layers"]) for k in ("sparse", "low_rank", "low_rank_sparse")}
    quality = {subject.metric: best.metric, "dense": result.baseline.metric} if subject.metric else {}
    return {
        **found, **quality, "S, L, L+S layers": "/".join(map(str, kinds.values())), "plan": best.source,
    }


def arguments(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few examples and trials, in less than a minute; nothing is written")
    return parser.parse_args()


def tell(script: str, rows: Table, notes: Sequence[str], quick: bool) -> None:
    """Print ``rows``; without ``quick`` put them into the file of results, in place of those of the same command."""
    table = pd.DataFrame(rows).round(4).to_string(index=False, na_rep="", max_colwidth=160)
    command = f"python studies/real_models/{script}"
    about = [*notes, f"{cpu()}, {torch.get_num_threads()} thread(s)"]
    text = "\n".join([f"$ OMP_NUM_THREADS=1 {command}", *about, "", table, ""])
    print(text)
    if quick:
        return
    blocks = re.split(r"^(?=\$ )", RESULTS.read_text(), flags=re.MULTILINE) if RESULTS.exists() else []
    kept = [b.strip() + "\n" for b in blocks if b.strip() and b.splitlines()[0] != text.splitlines()[0]]
    RESULTS.write_text("\n".join(sorted([*kept, text])))
