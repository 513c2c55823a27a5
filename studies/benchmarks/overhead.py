"""Wall time of a rung-0 trial against the bare forward passes it needs, side by side in one run.

    python studies/benchmarks/overhead.py STUDY [--pairs 9] [--set KEY=VALUE]

Prints one line per pair and the median ratio. The bare passes are what a hand-written loop does:
the scoring pass, the BatchNorm pass in train mode, and two passes over the held-out part.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from lrsearch.proxy.calibrate import norms
from lrsearch.proxy.sources import load_base, load_examples
from lrsearch.search.progress import Progress
from lrsearch.search.session import open_search
from lrsearch.shipped import load_study


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("study")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args()
    sys.path.insert(0, str(Path.cwd()))
    config = load_study(args.study, [*args.set, "proxy.finetune.steps=0", "search.control_points=1"])
    model = load_base(config.model)
    calibration, score = load_examples(config.data.calibration, "calibration", model), load_examples(config.data.score, "score", model)
    with tempfile.TemporaryDirectory() as folder:
        search = open_search(model, calibration, score, None, config, Path(folder), Progress())
        evaluator, ratios = search.evaluator, []
        dense = load_base(config.model)

        def bare() -> None:
            with torch.inference_mode():
                held_out = [evaluator.held_out] * (2 if norms(dense) else 0)
                for examples in (evaluator.scoring, *held_out):
                    for x, _ in examples.batches(config.proxy.batch):
                        dense(x)
                for m in norms(dense):
                    m.train()
                if norms(dense):
                    for x, _ in evaluator.fit.batches(config.proxy.batch):
                        dense(x)
                dense.eval()

        bare()
        while len(ratios) < args.pairs:
            started, trials = time.perf_counter(), len({r.plan.fingerprint for r in search.records})
            search._step()
            trial = time.perf_counter() - started
            started = time.perf_counter()
            bare()
            passes = time.perf_counter() - started
            if len({r.plan.fingerprint for r in search.records}) > trials:
                ratios.append(trial / passes)
                print(f"trial {trial:.2f} s, bare passes {passes:.2f} s, ratio {ratios[-1]:.3f}", flush=True)
        print(f"median ratio over {len(ratios)} pairs: {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
