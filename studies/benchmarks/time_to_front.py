"""How soon a finished study's front was good: within 2 % of its last hypervolume.

    python studies/benchmarks/time_to_front.py FOLDER [FOLDER …] [--cost params] [--within 0.02]

Minutes are those in which a trial was under way that finished, as the study's storage has them: the profile is not in them, nor what lies
between two runs. A plan counts as the search had it by then. Hypervolume of log10 KL and cost ratio, below KL 2 nats and ratio 1.
"""

import argparse
from pathlib import Path

import pandas as pd
from samplers import volume

from lrsearch.search.records import DENSE, Record, merged
from lrsearch.study import space_file
from lrsearch.study.stored_trials import open_storage
from lrsearch.study.study_folder import StudyFolder


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--cost", default="params")
    parser.add_argument("--within", type=float, default=0.02)
    args = parser.parse_args()
    for folder in args.folders:
        run = progress(folder, args.cost)
        good = run[run.volume >= (1 - args.within) * run.volume.iloc[-1]].iloc[0]
        last = run.iloc[-1]
        print(f"{folder.name}: hypervolume {last.volume:.4f} after {told(last)}; within {args.within:.0%} of it after {told(good)}")


def told(row: pd.Series) -> str:
    return f"{row.trials:.0f} trials ({row.plans:.0f} plans) and {row.minutes:.1f} min"


def progress(folder: Path, cost: str) -> pd.DataFrame:
    """A row per finished trial, in the order of their ends: trials, plans and minutes so far, and the hypervolume."""
    found = open_storage(StudyFolder(folder)).get_trials()
    trials = [(end, start, r) for t in found if (end := t.datetime_complete) and (start := t.datetime_start) and (r := Record.of(t))]
    trials.sort(key=lambda trial: trial[0])
    dense = getattr(space_file.load(StudyFolder(folder)).costs.dense, cost)
    rows, minutes, before = [], 0.0, trials[0][1]
    for n, (end, start, _) in enumerate(trials, 1):
        plans = [r for r in merged(r for _, _, r in trials[:n]) if r.source != DENSE]
        points = pd.DataFrame({"kl": [r.score.kl for r in plans], "ratio": [getattr(r.cost, cost) / dense for r in plans]})
        minutes += (end - max(before, start)).total_seconds() / 60
        before = end
        rows.append({"trials": n, "plans": len(plans), "minutes": minutes, "volume": volume(points, 1.0) if len(plans) else 0.0})
    return pd.DataFrame(rows)


if __name__ == "__main__":
    main()
