"""Samplers against controls at an equal number of evaluations: hypervolume of log10 KL and cost ratio.

    python studies/benchmarks/samplers.py STUDY [--evaluations 60] [--seeds 3] [--samplers learned tpe random nsga2] [--set KEY=VALUE]

Rung 0 only. A control's plans are spread evenly, in ratio, over the targets the samplers may aim at.
Reference point: KL 2 nats, ratio 1; KL is floored at 1e-4.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from lrsearch.proxy.sources import load_base, load_examples
from lrsearch.search.controls import CONTROLS, control_plan, ladder
from lrsearch.search.progress import Progress
from lrsearch.search.records import SEARCH
from lrsearch.search.session import open_search
from lrsearch.search.study import Search
from lrsearch.shipped import load_study
from lrsearch.spec.front import hypervolume


def volume(points: Iterable[tuple[float, float]]) -> float:
    """Hypervolume of (KL, cost ratio) points."""
    rows = [(np.log10(max(kl, 1e-4)), ratio) for kl, ratio in points]
    return hypervolume(rows, (np.log10(2.0), 1.0)) if rows else 0.0


def control_points(search: Search, control: str, evaluations: int) -> list[tuple[float, float]]:
    ((metric, (low, high)),) = search.proposals.targets.items()
    dense, points = search.proposals.dense[metric], []
    for target in ladder(low, high, evaluations):
        plan = control_plan(search.proposals.decoder, control, {metric: target * dense})
        if plan is not None:
            kl = search.evaluator.score(search.profile.fits(plan), control).kl
            points.append((kl, getattr(search.proposals.decoder.costs(plan), metric) / dense))
    return points


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("study")
    parser.add_argument("--evaluations", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samplers", nargs="+", default=["learned", "tpe", "random", "nsga2"])
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args()
    sys.path.insert(0, str(Path.cwd()))
    fixed = ["proxy.finetune.steps=0", "search.control_points=1", f"search.trials={args.evaluations}"]
    base = load_study(args.study, [*args.set, *fixed])
    model = load_base(base.model)
    calibration, score = (load_examples(getattr(base.data, r), r, model) for r in ("calibration", "score"))
    steps = sorted({args.evaluations // 4, args.evaluations // 2, args.evaluations})
    print(f"{base.name}, n = {len(score)}; hypervolume after {steps} evaluations", flush=True)
    search = None
    for sampler in args.samplers:
        runs = []
        for seed in range(args.seeds):
            config = load_study(args.study, [*args.set, *fixed, f"search.sampler={sampler}", f"search.seed={seed}"])
            with tempfile.TemporaryDirectory() as folder:
                search = open_search(model, calibration, score, None, config, Path(folder), Progress())
                records = [r for r in search.run() if r.source == SEARCH]
            ((metric, dense),) = search.proposals.dense.items()
            points = [(r.scores[0].kl, getattr(r.cost, metric) / dense) for r in records]
            runs.append([volume(points[:n]) for n in steps])
        means = [f"{statistics.mean(column):.4f} ± {statistics.pstdev(column):.4f}" for column in zip(*runs, strict=True)]
        print(f"{sampler:14} {args.seeds} seeds  {'  '.join(means)}", flush=True)
    for control in CONTROLS:
        volumes = [f"{volume(control_points(search, control, n)):.4f}         " for n in steps]
        print(f"{control:14}          {'  '.join(volumes)}", flush=True)


if __name__ == "__main__":
    main()
