"""Is what the search gains on its score images there on others? The front found on few images, scored again on images nothing has read.

    python studies/benchmarks/unseen.py STUDY OUT.csv [--examples 1000] [--evaluations 50] [--seeds 3] [--methods …] [--set …]

The study's first ``--examples`` score images are those of the search, all others are the unseen ones. The controls' plans are spread
evenly over the targets, as many as the search evaluates. Hypervolume of log10 KL and cost ratio, below KL 2 nats and ratio 1.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from samplers import volume

from lrsearch.search.controls import CONTROLS, control_plan, ladder
from lrsearch.search.records import DENSE
from lrsearch.spec.front import non_dominated
from lrsearch.spec.plan import Plan
from lrsearch.spec.progress import Progress
from lrsearch.spec.shipped import load_study
from lrsearch.study.evaluator import Evaluator
from lrsearch.study.loop import Search
from lrsearch.study.opening import open_search
from lrsearch.workflows.materials import Materials

COLUMNS = ["method", "seed", "examples", "evaluations", "members", "seen", "unseen", "unseen_of_all"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("study")
    parser.add_argument("out", type=Path)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--evaluations", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=["knapsack", "sparse-only", "learned"])
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args()
    sys.path.insert(0, str(Path.cwd()))
    for method in args.methods:
        for seed in range(1 if method in CONTROLS else args.seeds):
            row = pd.DataFrame([outcome(args, method, seed)], columns=COLUMNS)
            row.to_csv(args.out, mode="a", header=not args.out.exists(), index=False)
            print(row.round(4).to_string(index=False, header=False), flush=True)
    print(pd.read_csv(args.out).round(4).to_string(index=False))


def outcome(args: argparse.Namespace, method: str, seed: int) -> dict[str, object]:
    """Hypervolumes of one run: of its front where it was found, and on the other images, of that front and of all its plans."""
    config = load_study(args.study, [
        "proxy.finetune.steps=0", "search.control_points=1", *args.set, f"search.seed={seed}", f"search.trials={args.evaluations}",
    ])
    given = Materials.of_study(config, "calibration", "score")
    model, calibration, whole = given.model, given.calibration, given.score
    with tempfile.TemporaryDirectory() as folder:
        search = open_search(model, calibration, whole.part(range(args.examples)), None, config, Path(folder), Progress())
        plans, kl = run(search, method, args.evaluations)
    ((metric, dense),) = search.proposals.dense.items()
    ratio = np.array([getattr(search.proposals.decoder.costs(p), metric) / dense for p in plans])
    front = non_dominated(np.c_[kl, ratio])
    rest = whole.part(range(args.examples, len(whole)))
    others = Evaluator(model, calibration, rest, None, config.proxy, search.evaluator.task)
    again = np.array([others.score(search.profile.fits(plan), "unseen").score.kl for plan in plans])
    seen, unseen = (pd.DataFrame({"kl": k, "ratio": ratio}) for k in (kl, again))
    return {
        "method": method, "seed": seed, "examples": args.examples, "evaluations": len(plans), "members": int(front.sum()),
        "seen": volume(seen, 1.0), "unseen": volume(unseen[front], 1.0), "unseen_of_all": volume(unseen, 1.0),
    }


def run(search: Search, method: str, evaluations: int) -> tuple[list[Plan], np.ndarray]:
    """Plans and their KL on the score images: of the search with its controls, or of one control's ladder."""
    if method == "learned":
        records = [r for r in search.run() if r.source != DENSE][:evaluations]
        return [r.plan for r in records], np.array([r.score.kl for r in records])
    ((metric, (low, high)),) = search.proposals.targets.items()
    aims = [{metric: target * search.proposals.dense[metric]} for target in ladder(low, high, evaluations)]
    plans = [p for aim in aims if (p := control_plan(search.proposals.decoder, method, aim)) is not None]
    return plans, np.array([search.evaluator.score(search.profile.fits(p), method).score.kl for p in plans])


if __name__ == "__main__":
    main()
