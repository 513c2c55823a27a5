"""The knapsack on the profile's predicted damage, no search and no finetuning: what the fits are worth.

    python studies/benchmarks/knapsack.py STUDY [--ratios 0.5 0.4 0.3] [--metric macs] [--families sparse …] [--polish] [--set KEY=VALUE]

Prints how long the profile took (delete the cache to time it afresh), and for each share of the
parameters, or of another cost, the score before and after a polish. The polished model is saved and
loaded again. With ``--families``, every layer is dense or of one of these.
"""

import argparse
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

from lrsearch.compress import artifact
from lrsearch.spec.progress import Progress
from lrsearch.spec.shipped import load_study
from lrsearch.spec.space import FAMILIES
from lrsearch.study.opening import open_search
from lrsearch.workflows.materials import Materials
from lrsearch.workflows.steps.polish_folder import polish_folder


class Clock(Progress):
    """Says when each stage begins."""

    def __init__(self) -> None:
        self.began = time.perf_counter()

    def stage(self, title: str, total: int, done: int = 0) -> None:  # noqa: ARG002
        print(f"{time.perf_counter() - self.began:6.1f} s  {title}, {total} steps", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("study")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.5, 0.4, 0.3])
    parser.add_argument("--metric", default="params")
    parser.add_argument("--families", nargs="+", choices=FAMILIES)
    parser.add_argument("--polish", action="store_true")
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args()
    sys.path.insert(0, str(Path.cwd()))
    limited = ("proxy.finetune.steps=0", f"budget={{{args.metric}: 1.0}}", f"objectives=[kl, {args.metric}]")
    config = load_study(args.study, [*args.set, *limited])
    given = Materials.of_study(config, "calibration", "score")
    model, calibration, score = given.model, given.calibration, given.score
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        search = open_search(model, calibration, score, None, config, Path(folder), clock)
        decoder, evaluator, profile = search.proposals.decoder, search.evaluator, search.profile
        base, reference = evaluator.baseline.quality, evaluator.outputs_of(score)
        print(f"{time.perf_counter() - clock.began:6.1f} s  profiled: {len(profile.layers)} layers, "
              f"{statistics.median(len(menu) for menu in profile.menus.values())} choices (median), {peak()}", flush=True)
        print(f"dense: metric {base:.4f}, n = {len(score)}, {len(calibration)} calibration examples", flush=True)
        for ratio in args.ratios:
            plan = decoder.solve(decoder.damage, {args.metric: ratio * getattr(decoder.costs.dense, args.metric)}, args.families)
            if plan is None:
                print(f"{ratio:.0%}  no plan", flush=True)
                continue
            began = time.perf_counter()
            fits = profile.fits(plan)
            read = time.perf_counter() - began
            scored = evaluator.score(fits, "knapsack")
            plain = scored.score
            print(f"{ratio:.0%}  params {decoder.costs(plan).params / decoder.costs.dense.params:.4f}  KL {plain.kl:.4f}, "
                  f"metric {100 * (plain.quality - base):+.2f} points, BatchNorm {'corrected' if plain.batchnorm else 'kept'}; "
                  f"fits read in {read:.2f} s, scored in {time.perf_counter() - began - read:.2f} s", flush=True)
            if args.polish:
                began, path = time.perf_counter(), Path(folder) / f"{ratio}"
                artifact.save(evaluator.compressed(profile.layers, plan, scored), plan, path, {"split": config.space.split})
                report = polish_folder(path, model, calibration, path.with_suffix(".polished"), config.proxy.held_out, config.proxy.batch,
                                       task=evaluator.task)
                polished = reference.compare(artifact.load(report.folder or path, model)).score(0, False, "polished")
                print(f"     polished {report.folder is not None} (held-out KL {report.before:.4f} -> {report.after:.4f}, "
                      f"{report.examples} examples): KL {polished.kl:.4f}, metric "
                      f"{100 * (polished.quality - base):+.2f} points, {time.perf_counter() - began:.0f} s, {peak()}",
                      flush=True)


def peak() -> str:
    return f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB"


if __name__ == "__main__":
    main()
