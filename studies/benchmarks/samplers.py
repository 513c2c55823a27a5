"""Samplers against controls at an equal number of evaluations: hypervolume of log10 KL and cost ratio, without finetuning.

    python studies/benchmarks/samplers.py STUDY OUT.csv [--evaluations 25 50 100] [--seeds 3] [--samplers …] [--controls …]
        [--examples N] [--set …]

Every sampler starts from the four controls at one budget, which count as evaluations. A control's own plans are spread evenly, in
ratio, over the targets. Every plan that is scored becomes a row of OUT.csv; what is there already is not run again. ``direct:NAME``
is a sampler over every layer's ranks and densities, the others are over the knapsack's weights. KL is floored at 1e-4. The table has
two reference points, both at KL 2 nats: the cost of the dense model, and the largest cost aimed at.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from lrsearch.search.controls import CONTROLS, control_plan, ladder
from lrsearch.search.records import DENSE
from lrsearch.spec.front import hypervolume
from lrsearch.spec.progress import Progress
from lrsearch.spec.shipped import load_study
from lrsearch.study.loop import Search
from lrsearch.study.opening import open_search
from lrsearch.workflows.materials import Materials

SAMPLERS = ("learned", "tpe", "nsga2", "gp", "cmaes", "random", "direct:tpe", "direct:random")
COLUMNS = ["method", "seed", "of", "evaluation", "kl", "ratio", "seconds"]


def main() -> None:
    args = arguments()
    sys.path.insert(0, str(Path.cwd()))
    fixed = ["proxy.finetune.steps=0", "search.control_points=1", *args.set]
    base = load_study(args.study, fixed)
    given = Materials.of_study(base, "calibration", "score")
    model, calibration, scoring = given.model, given.calibration, given.score
    scoring = scoring.part(range(args.examples or len(scoring)))

    def opened(folder: str, settings: Iterable[str] = ()) -> Search:
        return open_search(model, calibration, scoring, None, load_study(args.study, [*fixed, *settings]), Path(folder), Progress())

    with tempfile.TemporaryDirectory() as folder:
        search = opened(folder)
        high = next(iter(search.proposals.targets.values()))[1]
        for control in args.controls:
            for n in args.evaluations:
                once(args.out, (control, 0, n), lambda control=control, n=n: ladder_of(search, control, n))
    most = args.evaluations[-1]
    for seed in range(args.seeds):
        for method in args.samplers:
            once(args.out, (method, seed, most), lambda method=method, seed=seed: run(opened, method, seed, most))
    print(f"{base.name}, n = {len(scoring)}")
    print(table(pd.read_csv(args.out), args.evaluations, high).to_string())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("study")
    parser.add_argument("out", type=Path)
    parser.add_argument("--evaluations", type=int, nargs="+", default=[25, 50, 100])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samplers", nargs="*", default=list(SAMPLERS))
    parser.add_argument("--controls", nargs="*", choices=CONTROLS, default=list(CONTROLS))
    parser.add_argument("--examples", type=int)
    parser.add_argument("--set", action="append", default=[])
    return parser.parse_args()


def once(out: Path, key: tuple[str, int, int], rows) -> None:
    """Append what ``rows()`` returns, unless ``out`` has rows of this method, seed and number of evaluations."""
    known = pd.read_csv(out) if out.exists() else pd.DataFrame(columns=COLUMNS)
    if not ((known.method == key[0]) & (known.seed == key[1]) & (known.of == key[2])).any():
        new = pd.DataFrame([(*key, i, *row) for i, row in enumerate(rows(), 1)], columns=COLUMNS)
        new.to_csv(out, mode="a", header=not out.exists(), index=False)
        print(*key, f"{volume(new, 1.0):.4f}", flush=True)


def ladder_of(search: Search, control: str, evaluations: int) -> list[tuple[float, float, float]]:
    """KL, cost ratio and seconds of the plans of a control."""
    ((metric, (low, high)),) = search.proposals.targets.items()
    dense, rows = search.proposals.dense[metric], []
    for target in ladder(low, high, evaluations):
        began = time.monotonic()
        if (plan := control_plan(search.proposals.decoder, control, {metric: target * dense})) is not None:
            kl = search.evaluator.score(search.profile.fits(plan), control).score.kl
            rows.append((kl, getattr(search.proposals.decoder.costs(plan), metric) / dense, time.monotonic() - began))
    return rows


def run(opened, method: str, seed: int, evaluations: int) -> list[tuple[float, float, float]]:
    """KL, cost ratio and the seconds since the one before, of the controls and of what a sampler proposed."""
    parameters, _, sampler = method.rpartition(":")
    settings = [f"search.sampler={sampler}", f"search.parameters={parameters or 'knapsack'}", f"search.seed={seed}"]
    with tempfile.TemporaryDirectory() as folder:
        search = opened(folder, [*settings, f"search.trials={evaluations}"])
        records = [r for r in search.run() if r.source != DENSE][:evaluations]
        trials = {t.number: t for t in search.trials.study.get_trials(deepcopy=False)}
        ((metric, dense),) = search.proposals.dense.items()
    ends = [trials[r.number].datetime_complete for r in records]
    seconds = [(b - a).total_seconds() for a, b in zip([trials[records[0].number].datetime_start, *ends], ends, strict=False)]
    return [(r.scores[0].kl, getattr(r.cost, metric) / dense, s) for r, s in zip(records, seconds, strict=True)]


def volume(rows: pd.DataFrame, ratio: float) -> float:
    """Hypervolume below KL 2 nats and ``ratio``."""
    points = np.c_[np.log10(np.maximum(rows.kl, 1e-4)), rows.ratio]
    return hypervolume(points, (np.log10(2.0), ratio))


def table(raw: pd.DataFrame, evaluations: list[int], high: float) -> pd.DataFrame:
    """Mean and spread (sample standard deviation) over the seeds, after each number of evaluations, at both reference points."""
    rows = {}
    for method, of_method in raw.groupby("method", sort=False):
        cells = {}
        for ratio in (1.0, high):
            for n in evaluations:
                runs = of_method[of_method.of == (n if method in CONTROLS else evaluations[-1])]
                volumes = [volume(run[run.evaluation <= n], ratio) for _, run in runs.groupby("seed")]
                spread = f" ± {np.std(volumes, ddof=1):.4f}" if len(volumes) > 1 else ""
                cells[f"{n} (ratio {ratio:.3g})"] = f"{np.mean(volumes):.4f}{spread}"
        rows[method] = {"seeds": of_method.seed.nunique(), **cells}
    return pd.DataFrame.from_dict(rows, orient="index")


if __name__ == "__main__":
    main()
