"""Which low-rank format is best where: every 3 x 3 layer at equal stored values, with and without S.

    python studies/benchmarks/formats_table.py STUDY [--shares 0.5 0.3 0.15] [--layers "layer*"] [--set KEY=VALUE]

At each share of a layer's values, each format has the largest rank that stays within; where a part of the share is
S's, L has the largest rank within the rest and S all that is left. ``S alone`` has the whole share. Columns: stored
share; median output error ‖(W − Ŵ) C^½‖² / ‖W C^½‖² on the score data's inputs, over all layers and by stage (layers
that stride apart); in brackets in how many of them the format is the best (``S alone``: beats all formats); then KL
from the dense model and top-1 points won or lost on the score data when every layer takes the format at that share,
BatchNorm corrected, no finetuning. A line per stage then ranks everything at that share by its median error.
"""

import argparse
import statistics
import sys
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from layer_errors import grams
from torch import Tensor

from lrsearch.compress.fit import Decomposition, FitProblem
from lrsearch.compress.inventory import inventory
from lrsearch.compress.matricize import to_matrix
from lrsearch.compress.shrinkage import best_shrinkage
from lrsearch.spec.cost import layer_cost
from lrsearch.spec.formats import FORMATS, Format, Rank
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.plan import LayerPlan
from lrsearch.spec.shipped import load_study
from lrsearch.study.evaluator import Evaluator
from lrsearch.task.softmax import Classification
from lrsearch.workflows.materials import Materials

S_ALONE = "S alone"
IN_S = {"L alone": 0.0, "third in S": 1 / 3, "half in S": 0.5}
Errors = dict[str, dict[str, float]]  # name -> layer -> error


def largest(layer: LayerSpec, form: Format, budget: int) -> Rank:
    """The largest ratio of the largest rank that stays within ``budget`` values, then single ranks raised in turn."""
    most = form.max_rank(layer)
    ratio = max(k for k in range(1001) if not k or form.params(layer, form.rank(layer, k / 1000)) <= budget)
    rank, raised = form.rank(layer, ratio / 1000), True
    while raised:
        raised = False
        for k in sorted(range(len(rank)), key=lambda k: rank[k] / most[k]):
            more = (*rank[:k], rank[k] + 1, *rank[k + 1 :])
            if rank[k] < most[k] and form.params(layer, more) <= budget and not LayerPlan(form.name, more, 0.0).refusal(layer):
                rank, raised = more, True
                break
    return rank


def choice(layer: LayerSpec, name: str, share: float, in_s: float) -> LayerPlan:
    budget = int(share * layer.numel)
    if name == S_ALONE:
        return LayerPlan(density=budget / layer.numel)
    rank = largest(layer, FORMATS[name], budget - round(in_s * budget))
    return LayerPlan(name, rank, (budget - FORMATS[name].params(layer, rank)) / layer.numel if in_s else 0.0)


def error(fit: Decomposition, weight: Tensor, gram: Tensor) -> float:
    rest = weight - fit.effective()
    return float(((rest @ gram) * rest).sum() / ((weight @ gram) * weight).sum())


def stages(layers: list[LayerSpec]) -> dict[str, list[str]]:
    """Stage -> names of its layers; all of them first."""
    own = {layer.name: "strided" if layer.positions < layer.input_positions else layer.name.split(".")[0] for layer in layers}
    return {"all": list(own)} | {s: [k for k in own if own[k] == s] for s in sorted(set(own.values()))}


def wins(name: str, rivals: Iterable[str], errors: Errors, layers: list[str]) -> int:
    """In how many of ``layers`` none of ``rivals`` has a smaller error."""
    return sum(errors[name][k] <= min(errors[rival][k] for rival in rivals) for k in layers)


def block(errors: Errors, layers: list[LayerSpec], tails: dict[str, tuple[float, str]]) -> str:
    """One line per format."""
    lines = [f"  {'':12} stored  " + "  ".join(f"{s:^15}" for s in stages(layers)) + "      KL   top-1"]
    formats = [name for name in errors if name != S_ALONE]
    for name in errors:
        cells = [f"{statistics.median(errors[name][k] for k in own):.5f} [{wins(name, formats, errors, own):2}/{len(own):2}]"
                 for own in stages(layers).values()]
        lines.append(f"  {name:12}  {tails[name][0]:.3f}  {'  '.join(cells)}  {tails[name][1]}")
    return "\n".join(lines)


def ranking(everything: Errors, layers: list[str]) -> str:
    medians = {name: statistics.median(errors[k] for k in layers) for name, errors in everything.items()}
    best = sorted(medians, key=lambda name: medians[name])[:5]
    return "; ".join(f"{name} {medians[name]:.5f} [{wins(name, everything, everything, layers)}]" for name in best)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("study")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.3, 0.15])
    parser.add_argument("--layers", default="layer*")
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args()
    sys.path.insert(0, str(Path.cwd()))
    config = load_study(args.study, [*args.set, "proxy.finetune.steps=0"])
    given = Materials.of_study(config, "calibration", "score")
    model, calibration, score = given.model, given.calibration, given.score
    every = inventory(model, calibration.sample()).layers
    layers = [layer for layer in every if layer.kernel == (3, 3) and fnmatchcase(layer.name, args.layers)]
    formats = [name for name, form in FORMATS.items() if not any(form.refusal(layer) for layer in layers)]
    problems, inputs = {}, {}
    for layer, c in grams(given, layers):
        weight = to_matrix(model.get_parameter(f"{layer.name}.weight").detach().float(), layer)
        problems[layer.name] = FitProblem(layer, weight, c["fit"], best_shrinkage(layer, weight, c["fit"], c["check"]))
        inputs[layer.name] = c["fresh"]
    evaluator = Evaluator(model, calibration, score, None, config.proxy, Classification())
    base, total, tails = evaluator.baseline.quality, sum(layer.numel for layer in layers), {}
    print(f"{config.name}: dense metric {base:.4f}, n = {len(score)}; {len(layers)} layers, {total} values", flush=True)
    for share in args.shares:
        everything: Errors = {}
        for title, in_s in IN_S.items():
            for name in (*formats, S_ALONE):
                key = name if name == S_ALONE else f"{name}, {title}"
                if key in everything:
                    continue
                plans = {layer.name: choice(layer, name, share, in_s) for layer in layers}
                fits = {k: problems[k].fit(plan) for k, plan in plans.items()}
                everything[key] = {k: error(fit, problems[k].weight, inputs[k]) for k, fit in fits.items()}
                found = evaluator.score(fits, key).score
                stored = sum(layer_cost(layer, plans[layer.name]).params for layer in layers) / total
                tails[name] = stored, f"{found.kl:8.4f}  {100 * (found.quality - base):+6.2f}"
            errors = {n: everything[n if n == S_ALONE else f"{n}, {title}"] for n in (*formats, S_ALONE)}
            print(f"{share:.0%} of the values, {title}\n{block(errors, layers, tails)}", flush=True)
        for s, own in stages(layers).items():
            print(f"  {share:.0%}, best of all, {s} ({len(own)} layers): {ranking(everything, own)}", flush=True)


if __name__ == "__main__":
    with torch.no_grad():
        main()
