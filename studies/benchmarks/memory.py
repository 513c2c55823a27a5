"""Models that fit a size: the knapsack on predicted damage under a budget of bytes, saved, and loaded again.

    python studies/benchmarks/memory.py STUDY --sizes "8 MB" "5 MB" [--values float16 int8] [--set KEY=VALUE]

For each value type and size: the size predicted and the size of the file, the score that a search would
see and the score of the file loaded into the base model. No search and no finetuning.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from lrsearch.compress import artifact
from lrsearch.spec.plan import Plan
from lrsearch.spec.progress import Progress
from lrsearch.spec.shipped import load_study
from lrsearch.spec.units import parse_bytes
from lrsearch.study.opening import open_search
from lrsearch.workflows.materials import Materials


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("study")
    parser.add_argument("--sizes", nargs="+", required=True)
    parser.add_argument("--values", nargs="+", default=["float32", "float16", "int8"])
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args()
    sys.path.insert(0, str(Path.cwd()))
    for values in args.values:
        measure(args.study, values, args.sizes, args.set)


def measure(study: str, values: str, sizes: list[str], settings: list[str]) -> None:
    config = load_study(study, [*settings, "proxy.finetune.steps=0", "budget={}", f"weights.values={values}"])
    given, folder = Materials.of_study(config, "calibration", "score"), Path(tempfile.mkdtemp())
    model, score = given.model, given.score
    search = open_search(model, given.calibration, score, None, config, folder, Progress())
    decoder, evaluator, profile = search.proposals.decoder, search.evaluator, search.profile
    base, reference = evaluator.baseline.quality, evaluator.outputs_of(score)
    print(f"{study}, {values}: dense {decoder.costs.dense.weight_bytes:,} bytes, metric {base:.4f}, n = {len(score)}", flush=True)
    for size in ["no limit", *sizes]:
        plan = Plan() if size == "no limit" else decoder.solve(decoder.damage, {"weight_bytes": parse_bytes(size, "--sizes")})
        if plan is None:
            print(f"  {size:>8}  no plan; the smallest takes {decoder.smallest('weight_bytes'):,} bytes", flush=True)
            continue
        fits, cost, path = profile.fits(plan), decoder.costs(plan), folder / "model"
        found = evaluator.score(fits, size)
        scored = found.score
        artifact.save(evaluator.compressed(profile.layers, plan, found), plan, path, {"split": config.space.split}, evaluator.storage)
        loaded = reference.compare(artifact.load(path, model)).score(0, False, size)
        file, share = (path / artifact.WEIGHTS).stat().st_size, cost.params / decoder.costs.dense.params
        print(f"  {size:>8}  predicted {cost.weight_bytes:>10,}  file {file:>10,} bytes  params {share:.3f}  "
              f"scored: KL {scored.kl:.4f}, metric {100 * (scored.quality - base):+.2f} points  "
              f"loaded: KL {loaded.kl:.4f}, metric {100 * (loaded.quality - base):+.2f} points", flush=True)


if __name__ == "__main__":
    main()
