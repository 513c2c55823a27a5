"""Wall time of a trial against the bare passes that it needs, side by side in one run.

    python studies/benchmarks/overhead.py STUDY [--pairs 9] [--steps 0] [--set KEY=VALUE]

Prints one line per pair and the median ratio. Without ``--steps`` a rung-0 trial is timed; the bare passes are what a hand-written loop
does: the scoring pass, the BatchNorm pass in train mode, and two passes over the held-out part. With ``--steps N`` a pair is N steps of
the study's finetune, from the knapsack's plan, and as many bare forward and backward passes of the dense model on the same inputs.
"""

import argparse
import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import nn

from lrsearch.search.controls import control_plan
from lrsearch.spec.progress import Progress
from lrsearch.spec.shipped import load_study
from lrsearch.study.evaluator import Evaluator
from lrsearch.study.loop import Search
from lrsearch.study.opening import open_search
from lrsearch.train.batchnorm import norms
from lrsearch.train.finetune import batch_order
from lrsearch.workflows.materials import Materials


def main() -> None:
    args = arguments()
    sys.path.insert(0, str(Path.cwd()))
    settings = [f"proxy.finetune.steps={args.steps * args.pairs}", "proxy.finetune.rungs=1", "search.control_points=1"]
    config = load_study(args.study, [*args.set, *settings])
    given = Materials.of_study(config, "calibration", "score", *(["train"] if args.steps else []))
    model, dense, train = given.model, copy.deepcopy(given.model), given.train if args.steps else None
    with tempfile.TemporaryDirectory() as folder:
        search = open_search(model, given.calibration, given.score, train, config, Path(folder), Progress())
        pairs = finetunes(search, dense, args.steps) if args.steps else trials(search, dense)
        ratios = []
        for (ours, bare), _ in zip(pairs, range(args.pairs), strict=False):
            ratios.append(ours / bare)
            print(f"{'finetune' if args.steps else 'trial'} {ours:.2f} s, bare passes {bare:.2f} s, ratio {ratios[-1]:.3f}", flush=True)
        print(f"median ratio over {len(ratios)} pairs: {statistics.median(ratios):.3f}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("study")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--set", action="append", default=[])
    return parser.parse_args()


def trials(search: Search, dense: nn.Module) -> Iterator[tuple[float, float]]:
    """Seconds of each trial that evaluates a new plan, and of the bare passes beside it."""
    passes = partial(scored, search.evaluator, dense)
    passes()
    search.trials.queue_controls()
    while trial := search._claim(time.monotonic()):
        known = len({r.plan.fingerprint for r in search.records})
        ours, bare = seconds(partial(search._step, trial)), seconds(passes)
        if len({r.plan.fingerprint for r in search.records}) > known:
            yield ours, bare


@torch.inference_mode()
def scored(evaluator: Evaluator, dense: nn.Module) -> None:
    """What a score needs at least."""
    for examples in (evaluator.scoring, *[evaluator.held_out] * (2 if norms(dense) else 0)):
        for x in evaluator.inputs(examples, evaluator.config.batch):
            dense(x)
    for m in norms(dense):
        m.train()
    if norms(dense):
        for x in evaluator.inputs(evaluator.fit, evaluator.config.batch):
            dense(x)
    dense.eval()


def finetunes(search: Search, dense: nn.Module, steps: int) -> Iterator[tuple[float, float]]:
    """Seconds of each next ``steps`` steps of a finetune, and of the bare passes beside them."""
    evaluator, decoder = search.evaluator, search.proposals.decoder
    plan = control_plan(decoder, "knapsack", decoder.limits)
    assert plan is not None, "budgets were checked"
    assert evaluator.teacher is not None, "there are steps"
    training, train = evaluator.training(search.profile.fits(plan, evaluator.device)), evaluator.teacher.fit
    order = batch_order(train, evaluator.config.finetune)

    def passes(done: int) -> None:
        for index in order[done : done + steps]:
            dense(train.at(index, evaluator.device).inputs).sum().backward()

    passes(0)
    for done in range(0, len(order), steps):
        yield seconds(partial(training.run, done + steps)), seconds(partial(passes, done))


def seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
