"""Ours beside what others offer: equal data, equal finetune, equal counters, one run.

    pip install -e '.[peers]'
    python studies/benchmarks/peers.py STUDY --limit macs=0.5 [--methods ours filters …] [--steps 300] [--batch 128] [--set KEY=VALUE]

STUDY names the model and the data; budget and objectives of the study are replaced by the limit. All methods see the calibration data,
all finetunes the training data. BatchNorm is corrected where held-out calibration examples say that it helps, before the finetune, for all.
The finetune is ours for all: towards the dense model's stages, Adam, loss and rate found by short ones. MACs are torch's count of the
exported model, parameters its values other than zero, bytes those of the compacted ``model.onnx``. Times are of the exported files on ONNX
Runtime, one thread, by the processor's clock, interleaved in one run, as shares of dense in float32. Minutes are of the processor.
"""

import argparse
import copy
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lrsearch.compress.apply import compress
from lrsearch.compress.inventory import inventory
from lrsearch.deploy.deployed import deployed
from lrsearch.deploy.onnx_export import exported
from lrsearch.deploy.onnx_size import compact
from lrsearch.deploy.quantize import quantised_to_time, weight_bits
from lrsearch.latency.runner import WHOLE_ROUNDS, interleaved, machine_facts, onnx_runners
from lrsearch.measure.count import dense_macs
from lrsearch.spec.config import FinetuneConfig
from lrsearch.spec.plan import Plan
from lrsearch.spec.registry import resolve
from lrsearch.spec.shipped import load_study
from lrsearch.spec.training import Recipe
from lrsearch.study.parts import split_calibration
from lrsearch.task.choose import settled_task
from lrsearch.task.forward import rows
from lrsearch.task.memory import BatchSize
from lrsearch.task.scoring import Comparison, Reference
from lrsearch.train.batchnorm import Correction, Statistics, norms, running, statistics
from lrsearch.train.finetune import Training
from lrsearch.train.range_test import range_test, short
from lrsearch.train.teacher import Teacher
from lrsearch.workflows.materials import Materials
from lrsearch.workflows.steps.lowering import Lowering, compared

sys.path.insert(0, str(Path(__file__).parent))
from peer_methods import METHODS, Given, Made


@dataclass
class Row:
    """What came of a method."""

    name: str
    file: bytes
    told: str


class Bench:
    """One model, its data, and the finetune that is the same for all."""

    def __init__(self, args: argparse.Namespace) -> None:
        metric, share = args.limit.split("=")
        changes = [f"budget={{{metric}: {share}}}", f"objectives=[kl, {metric}]", "space=auto", "proxy.finetune.steps=0", *args.set]
        loaded = Materials.of_study(load_study(args.study, changes), "calibration", "score", "train")
        self.model, self.calibration, self.sample = loaded.model, loaded.calibration, loaded.score.sample()
        self.task = settled_task("auto", self.model, loaded.score, self.calibration, resolve)
        self.finetune, self.sizes = FinetuneConfig(steps=args.steps, batch=args.batch, seed=args.seed), BatchSize(args.batch)
        self.teacher = Teacher(self.model, self.task, loaded.train, self.finetune, self.sizes)
        self.reference = Reference(self.task, self.model, loaded.score, self.sizes)
        fit, held_out = split_calibration(self.calibration, 0.25)
        self.correction = Correction(self.model, fit, held_out, self.sizes, self.task)
        judge = Reference(self.task, self.model, held_out, self.sizes)
        self.given = Given(
            self.model, tuple(inventory(self.model, self.sample).layers), self.calibration, loaded.score, self.sample, loaded.config,
            (metric, float(share)), lambda model: float(judge.compare(model, measured=False).divergences.mean()),
        )
        self.dense = self.reference.itself(self.model, "dense").metric or 0.0

    def points(self, found: Comparison) -> str:
        return f"{100 * ((found.metric or 0.0) - self.dense):+.2f} (KL {found.divergences.mean():.4f})"

    def row(self, name: str) -> Row:
        began = time.process_time()
        made = METHODS[name](self.given)
        minutes = (time.process_time() - began) / 60
        self.correct(made.model)
        before = self.points(self.reference.compare(made.model))
        small, rate = self.finetuned(made)
        whole = exported(small, self.sample, True)
        return Row(name, whole, f"{before} -> {self.points(self.reference.compare(small))}, rate {rate:.2g}; {self.counted(small)}, "
                                f"{len(compact(whole)):,} bytes; {minutes:.1f} minutes")

    def correct(self, model: nn.Module) -> None:
        """Correct BatchNorms as a study does; of a smaller model, calibrate them. Undone where it does harm."""
        if all(len(a) == len(b) for (a, _), (b, _) in zip(running(model), running(self.model), strict=True)):
            self.correction.apply_if_better(model)
            return
        before, old = self.given.divergence(model), running(model)
        put(model, statistics(model, (images for images, _ in self.given.batches())))
        if self.given.divergence(model) >= before:
            put(model, old)

    def finetuned(self, made: Made) -> tuple[nn.Module, float]:
        """As it is exported, and the learning rate that was found."""
        start = copy.deepcopy(made.model.state_dict())

        def begun(recipe: Recipe, config: FinetuneConfig) -> Training:
            made.model.load_state_dict(start)
            training = Training(made.model, made.fits, self.teacher.lowering(recipe.loss), config, recipe.learning_rate)
            training.learns = True
            return training

        fits, rate = made.fits, 0.0
        if self.finetune.steps:
            recipe = range_test(lambda r: begun(r, short(self.finetune)), self.teacher.losses, self.finetune.longest).recipe
            fits, rate = begun(recipe, self.finetune).run(self.finetune.steps), recipe.learning_rate
        layers = tuple(fit.layer for fit in fits.values())
        whole = compress(made.model, layers, Plan({n: fit.plan for n, fit in fits.items()}), fits) if fits else made.model
        return deployed(whole, self.sample), rate

    def counted(self, small: nn.Module) -> str:
        dense = deployed(self.model, self.sample)
        macs, params = dense_macs(small, self.sample) / dense_macs(dense, self.sample), values(small) / values(dense)
        return f"{macs:.1%} of the MACs, {params:.1%} of the parameters"

    def plain(self) -> list[Row]:
        """The dense model, in float32 and quantised."""
        dense = deployed(self.model, self.sample)
        whole, began = exported(dense, self.sample, True), time.process_time()
        int8 = Lowering("int8", self.model, self.calibration, self.task)(whole, dense, (), None)
        minutes, counted = (time.process_time() - began) / 60, self.counted(dense)
        lost = self.points(compared(self.reference, int8, dense))
        return [Row("dense", whole, f"{counted}, {len(compact(whole)):,} bytes"),
                Row("plain int8", int8, f"{lost}; {counted}, {len(int8):,} bytes; {minutes:.1f} minutes")]


def put(model: nn.Module, found: Statistics) -> None:
    """Make ``found`` the running statistics."""
    for norm, (mean, var) in zip(norms(model), found, strict=True):
        norm.get_buffer("running_mean").copy_(mean)
        norm.get_buffer("running_var").copy_(var)


def values(model: nn.Module) -> int:
    """Parameters other than zero."""
    return sum(int(p.count_nonzero()) for p in model.parameters())


def times(files: list[bytes], x: Tensor) -> list[float]:
    """Milliseconds of each, interleaved."""
    inputs = [rows(x, slice(0, 1)).numpy()]
    return [each.median for each in interleaved([onnx_runners(file, 1, inputs) for file in files], 1, rounds=WHOLE_ROUNDS)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("study")
    parser.add_argument("--limit", required=True)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args()
    torch.set_num_threads(1)
    sys.path.insert(0, str(Path.cwd()))
    bench, here = Bench(args), machine_facts()
    print(f"{args.study} at {args.limit} of dense ({bench.dense:.2%}, n = {len(bench.reference.examples)}); {args.steps} steps of "
          f"{args.batch}; {here['cpu']}, int8 weights of {weight_bits()} bits, load {here['load']}, {here['date']}", flush=True)
    found = bench.plain()
    print(*(f"{each.name}: {each.told}" for each in found), sep="\n", flush=True)
    for name in args.methods:
        found.append(bench.row(name))
        print(f"{name}: {found[-1].told}", flush=True)
    floats = [found[0], *found[2:]]
    int8 = [quantised_to_time(each.file) for each in floats]
    ms = times([*(each.file for each in found), *int8], bench.sample)
    for each, taken in zip(found, ms, strict=False):
        print(f"time of {each.name}: {taken / ms[0]:.3f} ({taken:.3f} ms)")
    for each, taken in zip(floats, ms[len(found):], strict=True):
        print(f"time of {each.name} in int8: {taken / ms[0]:.3f}, of dense in int8 {taken / ms[len(found)]:.3f}")
    print(f"load {machine_facts()['load']}")


if __name__ == "__main__":
    main()
