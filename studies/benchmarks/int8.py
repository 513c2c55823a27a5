"""What int8 takes, loses and weighs: the dense model, and plans of whole columns and of low rank, each in float32 and int8 side by side.

    python studies/benchmarks/int8.py STUDY [--examples 1000] [--columns 0.5 0.75] [--rank-ratios 0.25 0.5] [--set KEY=VALUE]

STUDY names the model and the data. Times are of whole models with random factors on ONNX Runtime, one thread, one example, by the
processor's clock, all interleaved in one run: columns are dropped from every layer that is fed by another alone, which goes with them;
low rank is SVD of every layer that has more than one position. Losses are those of the dense model's real files on the score data.
Bytes are those of ``model.onnx``: as the exporter writes it, then compacted, of the dense model and of one with 30 % of its values.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import nn

from lrsearch.compress.inventory import inventory
from lrsearch.deploy.deployed import deployed
from lrsearch.deploy.onnx_export import exported
from lrsearch.deploy.onnx_size import compact
from lrsearch.deploy.quantize import quantised_to_time, weight_bits
from lrsearch.latency.runner import WHOLE_ROUNDS, interleaved, machine_facts, onnx_runners
from lrsearch.latency.survey import Survey
from lrsearch.spec.formats import FORMATS
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.plan import LayerPlan, Plan
from lrsearch.spec.registry import resolve
from lrsearch.spec.shipped import load_study
from lrsearch.task.choose import settled_task
from lrsearch.task.forward import rows
from lrsearch.task.memory import BatchSize
from lrsearch.task.scoring import Reference
from lrsearch.workflows.materials import Materials
from lrsearch.workflows.steps.lowering import AT_ONCE, Lowering, compared

KEPT = 0.3  # share of the values of the sparse model


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("study")
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--columns", type=float, nargs="*", default=[0.5, 0.75])
    parser.add_argument("--rank-ratios", type=float, nargs="*", default=[0.25, 0.5])
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args()
    torch.set_num_threads(1)
    sys.path.insert(0, str(Path.cwd()))
    given = Materials.of_study(load_study(args.study, args.set), "calibration", "score")
    sample = given.score.sample()
    here = machine_facts()
    print(f"{args.study}: {here['cpu']}, weights of {weight_bits()} bits in int8, load {here['load']}, {here['date']}", flush=True)
    sizes(given.model, sample)
    times(given.model, sample, args.columns, args.rank_ratios)
    losses(given, args.examples)


def sizes(model: nn.Module, sample: torch.Tensor) -> None:
    """Bytes of model.onnx before and after."""
    small = deployed(model, sample)
    thin = deployed(model, sample)
    for layer in (m for m in thin.modules() if isinstance(m, nn.Linear | nn.Conv2d)):
        size = layer.weight.abs()
        layer.weight.data *= size > size.flatten().kthvalue(max(1, round((1 - KEPT) * size.numel()))).values
    for name, each in (("dense", small), (f"{KEPT:.0%} of the values", thin)):
        whole = exported(each, sample, True)
        int8 = quantised_to_time(whole)
        shown = {"float32": compact(whole), "float16": compact(whole, True), "int8 as quantised": int8, "int8": compact(int8)}
        print(f"bytes of {name}: exported {len(whole):,}; " + ", ".join(f"{k} {len(v):,}" for k, v in shown.items()), flush=True)


def times(model: nn.Module, sample: torch.Tensor, columns: list[float], ratios: list[float]) -> None:
    """Float32 and int8 side by side."""
    layers = inventory(model, sample).layers
    survey = Survey.of(model, layers, {each.name: [LayerPlan(), *_column(each, 0.5)] for each in layers}, sample, 1)
    plans = {"dense": Plan()}
    plans |= {f"columns {d}": Plan({n.name: p for n in layers if n.name in survey.fed for p in _column(n, d)}) for d in columns}
    plans |= {f"svd {r}": Plan({n.name: p for n in layers for p in _svd(n, r)}) for r in ratios}
    models: dict[tuple[str, str], bytes] = {}
    for name, plan in plans.items():
        whole = survey.onnx(plan, ())
        models |= {(name, "float32"): whole, (name, "int8"): quantised_to_time(whole)}
    x = [rows(sample, slice(0, 1)).numpy()]
    found = interleaved([onnx_runners(each, 1, x) for each in models.values()], 1, rounds=WHOLE_ROUNDS)
    ms = dict(zip(models, found, strict=True))
    dense, dense_int8 = ms["dense", "float32"].median, ms["dense", "int8"].median
    for name in plans:
        f, i = ms[name, "float32"].median, ms[name, "int8"].median
        print(f"{name:<14} float32 {f:.3f} ms ({f / dense:.3f})  int8 {i:.3f} ms ({i / dense:.3f}; of dense int8 {i / dense_int8:.3f})  "
              f"load {machine_facts()['load']}", flush=True)


def _column(layer: LayerSpec, density: float) -> list[LayerPlan]:
    plan = LayerPlan(density=density, pattern="column")
    return [] if plan.refusal(layer) else [plan]


def _svd(layer: LayerSpec, ratio: float) -> list[LayerPlan]:
    form = FORMATS["svd"]
    if layer.positions == 1 or form.refusal(layer):
        return []
    plan = LayerPlan("svd", (max(1, round(ratio * form.max_rank(layer)[0])),), 0.0)
    return [] if plan.refusal(layer) else [plan]


def losses(given: Materials, examples: int) -> None:
    """The dense model's files on the score data."""
    scoring = given.score.part(range(min(examples, given.score.units)))
    task = settled_task("auto", given.model, scoring, given.calibration, resolve)
    reference, sample = Reference(task, given.model, scoring, BatchSize(AT_ONCE)), scoring.sample()
    whole, dense = exported(deployed(given.model, sample), sample, True), reference.itself(given.model, "dense").metric or 0.0
    for precision in ("float16", "int8"):
        made = Lowering(precision, given.model, given.calibration, task)(whole, given.model, (), None)
        found = compared(reference, made, given.model)
        metric = found.metric or 0.0
        print(f"dense {precision}: KL {float(found.divergences.mean()):.5f}, {100 * metric:.2f} %, {100 * (metric - dense):+.2f} points "
              f"(n = {len(scoring)})", flush=True)


if __name__ == "__main__":
    main()
