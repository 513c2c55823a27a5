"""Output error of every layer: this project's fits against published ones, at the same number of stored values.

    python studies/benchmarks/layer_errors.py STUDY [--layers GLOB] [--families sparse …] [--weighed] \
        [--folder studies/results] [--set KEY=VALUE]

Error: ‖(W − Ŵ) C^½‖² / ‖W C^½‖², C the Gram matrix of the layer's inputs over the examples that every method was
given (``fit``), over the held-out share of the calibration data (``check``; it tells this project's fits alone how
far to shrink C), and over the score data, which nothing has seen (``fresh``). All outputs of a layer count the same, so
our fits are told so too; with ``--weighed`` they weigh outputs, as a study's do, which costs them in this error. One row
per layer, choice and method goes to ``layer_errors_NAME.csv`` as it comes. Then, per baseline and C: the number of cells,
the median of ours / theirs, the largest with its place, and the number of cells in which ours is worse.
"""

import argparse
import csv
import sys
import time
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from baselines import BASELINES
from torch import Tensor

from lrsearch.compress.fit import FitProblem
from lrsearch.compress.inventory import inventory
from lrsearch.compress.matricize import to_matrix
from lrsearch.compress.shrinkage import best_shrinkage
from lrsearch.profile.importance import importance
from lrsearch.profile.statistics import collect
from lrsearch.spec.cost import layer_cost
from lrsearch.spec.formats import FORMATS
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.plan import LayerPlan
from lrsearch.spec.shipped import load_study
from lrsearch.spec.space import Range
from lrsearch.study.parts import split_calibration
from lrsearch.workflows.materials import Materials

DENSITIES = [d / 10 for d in range(1, 9)]
RATIOS = Range(min=0.06, max=0.5, steps=5).values()
BESIDE_L = [0.05, 0.15, 0.3]
GRAMS = ("fit", "check", "fresh")
OURS = "lrsearch"


def menu(layer: LayerSpec) -> list[LayerPlan]:
    """S alone, L alone, and L + S at every second rank; depthwise layers are sparse only."""
    plans, svd = [LayerPlan(density=d) for d in DENSITIES], FORMATS["svd"]
    if not svd.refusal(layer):
        plans += [LayerPlan("svd", svd.rank(layer, q), 0.0) for q in RATIOS]
        plans += [LayerPlan("svd", svd.rank(layer, q), d) for q in RATIOS[::2] for d in BESIDE_L]
    return [p for p in dict.fromkeys(plans) if 0 < layer_cost(layer, p).params < layer.numel]


def grams(given: Materials, layers: list[LayerSpec]) -> Iterator[tuple[LayerSpec, dict[str, Tensor]]]:
    """Every layer with its Gram matrices, of the examples that a study would use, and the importance of its outputs."""
    proxy = given.config.proxy
    parts = *split_calibration(given.calibration, proxy.held_out), given.score
    fit, check, fresh = ([batch.inputs for batch in part.batches(proxy.batch)] for part in parts)
    known, unseen = collect(given.model, layers, fit, check), collect(given.model, layers, fresh, [])
    for layer in layers:
        ours = known[layer.name]
        yield layer, {
            "fit": ours.gram, "check": ours.check, "fresh": unseen[layer.name].gram, "importance": importance(ours.gram, ours.sketches),
        }


def cells(layer: LayerSpec, weight: Tensor, c: dict[str, Tensor], families: list[str], weighed: bool) -> Iterator[dict[str, object]]:
    """One row per choice and method."""
    began = time.perf_counter()
    energy = {k: float(((weight @ c[k]) * weight).sum().clamp_min(1e-30)) for k in GRAMS}

    def row(plan: LayerPlan, method: str, approximation: Tensor) -> dict[str, object]:
        nonlocal began
        seconds, rest = time.perf_counter() - began, (weight - approximation).double()
        kept = int((approximation != 0).sum()) if plan.family == "sparse" else 0
        assert kept <= plan.kept(layer), f"{method} keeps {kept} values"
        errors = {k: float(((rest @ c[k].double()) * rest).sum()) / energy[k] for k in GRAMS}
        head = {"layer": layer.name, "family": plan.family, "choice": str(plan), "stored": layer_cost(layer, plan).params}
        found = {**head, "method": method, **errors, "seconds": round(seconds, 4)}
        began = time.perf_counter()
        return found

    choices = [plan for plan in menu(layer) if plan.family in families]
    shrinkage = best_shrinkage(layer, weight, c["fit"], c["check"])
    problem = FitProblem(layer, weight, c["fit"], shrinkage, c["importance"] if weighed else None)
    for plan in choices:
        yield row(plan, OURS, problem.fit(plan).effective())
    for plan in choices:
        (rank,) = plan.rank or (0,)
        for name, method in BASELINES[plan.family].items():
            yield row(plan, name, method(weight, c["fit"], rank, plan.kept(layer)))


def summary(rows: pd.DataFrame) -> str:
    """The table described above."""
    rows = rows[rows.layer.isin(rows[rows.method != OURS].layer)]
    keys, lines = ["layer", "family", "choice", "stored"], []
    ours = rows[rows.method == OURS].set_index(keys)
    for (family, method), theirs in rows[rows.method != OURS].groupby(["family", "method"], sort=False):
        for k in GRAMS:
            ratio = (ours[k] / theirs.set_index(keys)[k]).dropna()
            largest: Any = ratio.idxmax()  # of keys
            worse = f"{int((ratio > 1 + 1e-6).sum()):4} worse"
            lines.append(f"{family:15} {method:11} {k:5} {len(ratio):4} cells  median {ratio.median():.3f}  {worse}, "
                         f"largest {ratio.max():.3f} at {largest[0]}, {largest[2]}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("study")
    parser.add_argument("--layers", default="*")
    parser.add_argument("--families", nargs="+", choices=BASELINES, default=list(BASELINES))
    parser.add_argument("--weighed", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path("studies/results"))
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args()
    sys.path.insert(0, str(Path.cwd()))
    config = load_study(args.study, args.set)
    given = Materials.of_study(config, "calibration", "score")
    model = given.model
    layers = [layer for layer in inventory(model, given.calibration.sample()).layers if fnmatchcase(layer.name, args.layers)]
    path, writer = args.folder / f"layer_errors_{config.name}.csv", None
    args.folder.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        for layer, c in grams(given, layers):
            weight = to_matrix(model.get_parameter(f"{layer.name}.weight").detach().float(), layer)
            for found in cells(layer, weight, c, args.families, args.weighed):
                if writer is None:
                    writer = csv.DictWriter(file, list(found))
                    writer.writeheader()
                writer.writerow(found)
            file.flush()
    rows = pd.read_csv(path)
    print(f"{config.name}: {len(layers)} layers; seconds per method: {rows.groupby('method').seconds.sum().round(1).to_dict()}")
    print(summary(rows))


if __name__ == "__main__":
    with torch.no_grad():
        main()
