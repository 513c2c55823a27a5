"""How well a table of layers timed alone predicts whole models: against MACs, and against MACs fitted to the truth.

    python studies/benchmarks/latency_model.py STUDY --folder FOLDER [--step table | export | time] [--backends …] [--plans 15] \
        [--repeats 3]

All steps run in turn, or each by itself with the others' results in FOLDER/STUDY: exporting needs no quiet machine, timing does.
Random mixed plans, low-rank in several formats, columns, rows and dense: as many at any cost, at MACs equal to within 1 %,
and spread evenly from dense to a fifth above the fastest by the table, as a search asks for them (random ones are all about
as fast). The factors are random, of a size that keeps activations as large as they are. Every model is deployed, then timed
beside the dense one, all interleaved. Drift is how much slower the dense model is beside them than it was beside the table's
probes; a budget that is a ratio does not notice it. ``alone`` is the table with what layers save alone, not scaled by what
the probes, other whole models, save.
Prints the mean absolute percentage error and Spearman's rho of each predictor, against the mean of ``--repeats`` series in new sessions.
"""

import argparse
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from lrsearch.compress.inventory import inventory
from lrsearch.compress.prepare import prepare
from lrsearch.latency.backends import BACKENDS, OnnxBackend
from lrsearch.latency.runner import WHOLE_ROUNDS, interleaved
from lrsearch.latency.survey import Survey
from lrsearch.latency.table import LatencyTable
from lrsearch.latency.whole_models import corrected
from lrsearch.measure.count import cost_model
from lrsearch.spec.cost import CostModel
from lrsearch.spec.plan import Plan
from lrsearch.spec.progress import Progress
from lrsearch.spec.shipped import load_study
from lrsearch.spec.space import Range, Rule, Space
from lrsearch.workflows.materials import Materials

SPACE = Space(rules=(
    Rule(
        formats=("svd", "tucker2", "spatial-svd"), patterns=("unstructured", "column", "row"),
        density=Range(min=0.25, max=0.75, steps=3), rank_ratio=Range(min=0.08, max=0.5, steps=5),
        combined_rank_ratio=Range(min=0.08, max=0.5, steps=5), combined_density=Range(min=0.1, max=0.3, steps=2),
    ),
))  # fmt: skip
DENSE_SHARE, NEAR, FASTEST = 0.3, 0.01, 0.2
STEPS = ("table", "export", "time")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("study")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--step", choices=STEPS)
    parser.add_argument("--backends", nargs="+", default=["onnxruntime", "openvino"], choices=["onnxruntime", "openvino"])
    parser.add_argument("--plans", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args()
    sys.path.insert(0, str(Path.cwd()))
    config = load_study(args.study, args.set)
    given = Materials.of_study(config, "calibration")
    model, sample = prepare(given.model, config.space.split), given.calibration.sample()
    found = inventory(model, sample)
    menus = SPACE.menus(found.layers)
    costs = cost_model(model, found.layers, sample)
    survey = Survey.of(model, found.layers, menus, sample, 1)
    rng = np.random.default_rng(0)
    anywhere = [random_plan(menus, rng, rng.uniform(0.1, 0.9)) for _ in range(args.plans)]
    equal = [moved(menus, rng, lambda plan: costs(plan).macs, 0.7 * costs.dense.macs) for _ in range(args.plans)]
    macs = np.array([costs(plan).macs for plan in (*anywhere, *equal)])
    print(f"{config.name}: {len(found.layers)} layers, {len(survey.jobs)} forms of {len({j.signature for j in survey.jobs})} "
          f"signatures; MACs {macs.min() / costs.dense.macs:.2f} to {macs.max() / costs.dense.macs:.2f} of dense", flush=True)
    bench = Bench(survey, costs, menus, [*anywhere, *equal], args.plans, args.repeats, args.folder / config.name)
    for name in args.backends:
        for step in [args.step] if args.step else STEPS:
            getattr(bench, step)(name)


def random_plan(menus, rng, dense: float) -> Plan:
    """Each layer dense with probability ``dense``, else any of its choices."""
    return Plan({n: menu[0] if rng.random() < dense else menu[rng.integers(len(menu))] for n, menu in menus.items()})


def moved(menus, rng, cost: Callable[[Plan], float], target: float) -> Plan:
    """A random plan, moved by random exchanges until it costs the target within 1 %; from the start again where that fails."""
    names = list(menus)
    while True:
        plan = random_plan(menus, rng, DENSE_SHARE)
        for _ in range(4000):
            now = cost(plan)
            if abs(now - target) < NEAR / 2 * target:
                return plan
            name = names[rng.integers(len(names))]
            other = Plan({**plan.layers, name: menus[name][rng.integers(len(menus[name]))]})
            if abs(cost(other) - target) < abs(now - target):
                plan = other


@dataclass
class Bench:
    """The steps, each for one backend."""

    survey: Survey
    costs: CostModel
    menus: dict
    plans: list[Plan]
    number: int
    series: int
    folder: Path

    def table(self, name: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        began = time.perf_counter()
        table = self.survey.measure(self.survey.conditions(name, 1), lambda *_: None, lambda: None)
        table = corrected(self.survey, table, self.menus, Progress())
        table.save(self._table(name))
        print(f"{name}: {len(self.survey.jobs)} forms measured in {time.perf_counter() - began:.1f} s, load {table.conditions.load}; "
              f"scale {table.scale:.3f}, stray {table.stray:.3f}", flush=True)

    def export(self, name: str) -> None:
        table = LatencyTable.load(self._table(name))
        for plan in self._deployed(table):
            merged = self.survey.merged(table, plan)
            path = self._model(plan, merged)
            if not path.exists():
                path.write_bytes(self.survey.onnx(plan, merged))

    def time(self, name: str) -> None:
        table = LatencyTable.load(self._table(name))
        deployed = self._deployed(table)
        models = [self._model(plan, self.survey.merged(table, plan)) for plan in deployed]
        now, backend = self.survey.conditions(name, 1), BACKENDS[name]
        assert isinstance(backend, OnnxBackend), f"{name} reads no ONNX"
        repeats = []
        for _ in range(self.series):
            times = interleaved([backend.load(path.read_bytes(), self.survey.sample, 1) for path in models], 1, rounds=WHOLE_ROUNDS)
            repeats.append([t.ms for t in times])
        ratios, truth = np.array([np.divide(r, r[0]) for r in repeats]), np.mean(repeats, axis=0)
        print(f"\n{name} {now.version}, {now.threads} thread, batch {now.batch}, {now.dtype}, {now.cpu}, load {now.load}, {now.date}")
        print(f"dense {', '.join(f'{r[0]:.3f}' for r in repeats)} ms beside the plans, {table.dense.ms:.3f} ms beside the probes")
        if self.series > 1:
            print(f"ratios to dense repeat to {100 * ratios.std(0, ddof=1).mean():.2f} %, rho of one series with another "
                  f"{spearmanr(ratios[0, 1:], ratios[1, 1:]).statistic:.3f}", flush=True)
        drift, macs = truth[0] / table.dense_ms, np.array([self.costs(plan).macs for plan in deployed[1:]])
        by_table, alone = ([costs(plan).latency_ms for plan in deployed[1:]]
                           for costs in (self._timed(table), self._timed(replace(table, scale=1.0))))
        predictors = {
            "table": np.array(by_table),
            "table * drift": drift * np.array(by_table),
            "alone": np.array(alone),
            "alone * drift": drift * np.array(alone),
            "macs": truth[0] * macs / self.costs.dense.macs,
        }
        n = self.number
        parts = {"any": slice(0, n), "equal MACs": slice(n, 2 * n), "both": slice(0, 2 * n), "spread": slice(2 * n, None)}
        for title, part in parts.items():
            compare(title, truth[1:][part], {predictor: values[part] for predictor, values in predictors.items()})

    def _deployed(self, table: LatencyTable) -> list[Plan]:
        """The dense model, the plans that no table chose, and those that this one spreads."""
        costs, rng = self._timed(table), np.random.default_rng(1)
        fastest = costs(Plan({name: min(menu, key=costs.latency[name].get) for name, menu in self.menus.items()})).latency_ms
        targets = np.linspace(table.dense_ms, fastest + FASTEST * (table.dense_ms - fastest), self.number + 1)[1:]
        return [Plan(), *self.plans, *(moved(self.menus, rng, lambda plan: costs(plan).latency_ms, target) for target in targets)]

    def _timed(self, table: LatencyTable) -> CostModel:
        alone = table.layers(self.survey.calls, self.menus, self.survey.chains)
        return self.costs.timed(table.dense_ms, alone, self.survey.spared(table, self.menus))

    def _table(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _model(self, plan: Plan, merged: list[str]) -> Path:
        return self.folder / f"{plan.fingerprint}-{zlib.crc32(' '.join(merged).encode()):08x}.onnx"


def compare(title: str, truth: np.ndarray, predictors: dict[str, np.ndarray]) -> None:
    """Each predictor as it is, and scaled and moved to fit the truth best."""
    print(f"{title:<11} {truth.min():.3f} to {truth.max():.3f} ms")
    for predictor, x in predictors.items():
        scale, offset = np.polyfit(x, truth, 1)
        for label, prediction in ((predictor, x), (f"{predictor}, fitted", scale * x + offset)):
            error, rho = 100 * np.abs(prediction / truth - 1), spearmanr(x, truth).statistic
            print(f"    {label:<15} MAPE {error.mean():6.2f} %  largest {error.max():6.2f} %  rho {rho:.3f}", flush=True)


if __name__ == "__main__":
    main()
