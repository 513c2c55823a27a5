"""Sparse-only, low-rank-only, L+S-only and all families side by side, at the same stored parameters.

    python studies/benchmarks/families.py STUDY [--ratios 0.5 0.3] [--set KEY=VALUE]

Each plan is the knapsack on the profile's predicted damage over the named families; every row is
scored on the study's score data before and, if the study finetunes, after the proxy finetune.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from lrsearch.proxy.sources import load_base, load_examples
from lrsearch.search.progress import Progress
from lrsearch.search.session import open_search
from lrsearch.shipped import load_study

FAMILIES = {
    "sparse-only": ("sparse",), "low-rank-only": ("low-rank",), "L+S-only": ("low-rank+sparse",),
    "all": ("sparse", "low-rank", "low-rank+sparse"),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("study")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.5, 0.3])
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args()
    sys.path.insert(0, str(Path.cwd()))
    config = load_study(args.study, args.set)
    model, steps = load_base(config.model), config.proxy.finetune.steps
    sets = {r: load_examples(getattr(config.data, r), r, model) for r in ("calibration", "score")}
    train = load_examples(config.data.train, "train", model) if steps else None
    with tempfile.TemporaryDirectory() as folder:
        search = open_search(model, sets["calibration"], sets["score"], train, config, Path(folder), Progress())
        decoder, evaluator = search.proposals.decoder, search.evaluator
        base = evaluator.baseline.metric
        print(f"dense: metric {base:.4f}, n = {len(evaluator.scoring)}; finetune steps {steps}", flush=True)
        for ratio in args.ratios:
            for name, families in FAMILIES.items():
                plan = decoder.solve(decoder.damage, {"params": ratio * decoder.costs.dense.params}, families)
                if plan is None:
                    print(f"{ratio:.0%} {name:14} no plan", flush=True)
                    continue
                fits = search.profile.fits(plan)
                scores = [evaluator.score(fits, name)]
                if steps:
                    scores.append(evaluator.trained(evaluator.training(fits), steps, name)[0])
                share = decoder.costs(plan).params / decoder.costs.dense.params
                shown = "; ".join(f"{s.fidelity} steps: KL {s.kl:.4f}, metric {100 * (s.metric - base):+.2f} points" for s in scores)
                print(f"{ratio:.0%} {name:14} params {share:.3f}  {shown}", flush=True)


if __name__ == "__main__":
    main()
