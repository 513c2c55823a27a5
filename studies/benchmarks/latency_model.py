"""How well a table of layers timed alone predicts whole models: against MACs, and against MACs fitted to the truth.

    python studies/benchmarks/latency_model.py STUDY [--backends onnxruntime openvino] [--plans 15] [--set KEY=VALUE]

Random mixed plans, low-rank in several formats, columns, rows and dense, as many at any cost and at MACs equal to
within 1 %; the factors are random, latency does not depend on values. Every model is deployed, then timed beside the
dense one, all interleaved. Prints the mean absolute percentage error and Spearman's rho of each predictor.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from lrsearch.compress.inventory import inventory
from lrsearch.compress.split import split
from lrsearch.measure.count import cost_model
from lrsearch.measure.latency.backends import BACKENDS
from lrsearch.measure.latency.graph import onnx_model
from lrsearch.measure.latency.runner import interleaved, surroundings
from lrsearch.measure.latency.survey import Survey
from lrsearch.proxy.sources import load_base, load_examples
from lrsearch.shipped import load_study
from lrsearch.spec.plan import Plan
from lrsearch.spec.space import Range, Rule, Space

SPACE = Space(rules=(
    Rule(
        formats=("svd", "tucker2", "spatial-svd"), patterns=("unstructured", "column", "row"),
        density=Range(min=0.25, max=0.75, steps=3), rank_ratio=Range(min=0.08, max=0.5, steps=5),
        combined_density=Range(min=0.1, max=0.3, steps=2),
    ),
))  # fmt: skip
DENSE_SHARE, NEAR = 0.3, 0.01


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("study")
    parser.add_argument("--backends", nargs="+", default=["onnxruntime", "openvino"], choices=["onnxruntime", "openvino"])
    parser.add_argument("--plans", type=int, default=15)
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args()
    sys.path.insert(0, str(Path.cwd()))
    config = load_study(args.study, args.set)
    model = split(load_base(config.model), config.space.split)
    sample = next(load_examples(config.data.calibration, "calibration", model).batches(2))[0]
    found = inventory(model, sample)
    menus = SPACE.menus(found.layers)
    costs = cost_model(model, found.layers, sample)
    survey = Survey.of(model, found.layers, menus, sample, 1)
    rng = np.random.default_rng(0)
    anywhere = [random_plan(menus, rng, rng.uniform(0.1, 0.9)) for _ in range(args.plans)]
    equal = equal_plans(menus, costs, rng, args.plans)
    macs = np.array([costs(plan).macs for plan in (*anywhere, *equal)])
    print(f"{config.name}: {len(found.layers)} layers, {len(survey.jobs)} forms of {len({j.signature for j in survey.jobs})} "
          f"signatures; MACs {macs.min() / costs.dense.macs:.2f} to {macs.max() / costs.dense.macs:.2f} of dense", flush=True)
    for name in args.backends:
        measured(name, survey, costs, menus, [*anywhere, *equal], args.plans)


def random_plan(menus, rng, dense: float) -> Plan:
    """Each layer dense with probability ``dense``, else any of its choices."""
    return Plan({n: menu[0] if rng.random() < dense else menu[rng.integers(len(menu))] for n, menu in menus.items()})


def equal_plans(menus, costs, rng, number: int) -> list[Plan]:
    """Plans whose MACs are equal within 1 %: random ones, moved by random exchanges."""
    names, target = list(menus), 0.7 * costs.dense.macs
    plans = []
    while len(plans) < number:
        plan = random_plan(menus, rng, DENSE_SHARE)
        for _ in range(4000):
            now = costs(plan).macs
            if abs(now - target) < NEAR / 2 * target:
                plans.append(plan)
                break
            name = names[rng.integers(len(names))]
            moved = Plan({**plan.layers, name: menus[name][rng.integers(len(menus[name]))]})
            if abs(costs(moved).macs - target) < abs(now - target):
                plan = moved
    return plans


def measured(name, survey, costs, menus, plans, number) -> None:
    """One backend: its table, then all plans and the dense model beside each other."""
    conditions, backend = survey.conditions(name, 1), BACKENDS[name]
    began = time.perf_counter()
    table = survey.measure(conditions, lambda *_: None, lambda: None)
    print(f"\n{name} {conditions.version}, {conditions.threads} thread, batch {conditions.batch}, {conditions.dtype}, {conditions.cpu}, "
          f"load {conditions.load}: {len(survey.jobs)} forms measured in {time.perf_counter() - began:.1f} s", flush=True)
    models = [exported(survey, plan, table.merged(survey.calls, plan)) for plan in (Plan(), *plans)]
    runners = [backend.load(data, survey.sample, 1) for data in models]
    before = surroundings()["load"]
    truth = np.array([t.ms for t in interleaved(runners)])
    print(f"dense {truth[0]:.3f} ms beside the plans, {table.dense.ms:.3f} ms beside the layers; load {before}", flush=True)
    timed = costs.timed(table.dense_ms, table.layers(survey.calls, menus))
    macs = np.array([costs(plan).macs for plan in plans])
    predictors = {
        "table": np.array([timed(plan).latency_ms for plan in plans]), "macs": table.dense_ms * macs / costs.dense.macs,
    }
    for title, part in (("any", slice(0, number)), ("equal MACs", slice(number, None)), ("both", slice(0, None))):
        y = truth[1:][part]
        print(f"{title:<11} {y.min():.3f} to {y.max():.3f} ms", flush=True)
        for predictor, values in predictors.items():
            x = values[part]
            scale, offset = np.polyfit(x, y, 1) if np.ptp(x) > 1e-9 else (1.0, 0.0)
            for label, prediction in ((predictor, x), (f"{predictor}, fitted", scale * x + offset)):
                error = 100 * np.abs(prediction / y - 1)
                rho = spearmanr(x, y).statistic
                print(f"    {label:<15} MAPE {error.mean():6.2f} %  largest {error.max():6.2f} %  rho {rho:.3f}", flush=True)


_MODELS = tempfile.TemporaryDirectory()


def exported(survey, plan, merged) -> bytes:
    """The plan's whole model as ONNX, deployed; kept for the next backend that merges the same layers."""
    path = Path(_MODELS.name) / f"{plan.fingerprint}-{hash(tuple(merged))}.onnx"
    if not path.exists():
        torch.manual_seed(0)
        path.write_bytes(onnx_model(survey.planned(plan, merged), survey.sample))
    return path.read_bytes()


if __name__ == "__main__":
    main()
