"""How well small changes of a plan are predicted: by the profile, and by gradients at the plan itself.

    python studies/benchmarks/neighbours.py STUDY [--ratios 0.5 0.3] [--neighbours 60] [--examples 1000] [--unseen 2000] [--set …]

The knapsack's plan at each ratio, and neighbours of it in which one, three or six layers take another choice of at most e times more or
less predicted damage. What each changes in KL is measured on the first ``--examples`` score images and on the ``--unseen`` ones after
them. Correlations of that with what is predicted: by the profile, and by the KL's gradient at the plan plus half the Fisher information
of each layer that changes, on the score images or on the calibration images.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_map_only

from lrsearch.compress.apply import write_effective
from lrsearch.search.controls import control_plan
from lrsearch.spec.plan import LayerPlan, Plan
from lrsearch.spec.progress import Progress
from lrsearch.spec.shipped import load_study
from lrsearch.study.evaluator import Evaluator
from lrsearch.study.loop import Search
from lrsearch.study.opening import open_search
from lrsearch.task.base import Outputs, Task
from lrsearch.task.data import Examples
from lrsearch.task.forward import tensors
from lrsearch.workflows.materials import Materials

Floats = NDArray[np.float64]
BATCH, SKETCHES, CHANGED = 100, 4, (1, 3, 6)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("study")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.5, 0.3])
    parser.add_argument("--neighbours", type=int, default=60)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--unseen", type=int, default=2000)
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args()
    sys.path.insert(0, str(Path.cwd()))
    config = load_study(args.study, [*args.set, "proxy.finetune.steps=0", "budget.params=1.0"])
    given = Materials.of_study(config, "calibration", "score")
    model, calibration, whole = given.model, given.calibration, given.score
    scoring, rest = whole.part(range(args.examples)), whole.part(range(args.examples, args.examples + args.unseen))
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        search = open_search(model, calibration, scoring, None, config, Path(folder), Progress())
        others = Evaluator(model, calibration, rest, None, config.proxy, search.evaluator.task)
        decoder = search.proposals.decoder
        for ratio in args.ratios:
            plan = control_plan(decoder, "knapsack", {"params": ratio * decoder.costs.dense.params})
            assert plan is not None, "the ratio can be met"
            picks = np.stack([neighbour(search, decoder.terms(plan), rng) for _ in range(args.neighbours)])
            measured = {name: changes(search, one, plan, picks) for name, one in (("score", search.evaluator), ("unseen", others))}
            predicted = {"profile": decoder.damage} | {
                f"gradients, {name}": local(search, plan, part) for name, part in (("score", scoring), ("calibration", calibration))
            }
            print(f"{ratio:.0%}: score with unseen r = {np.corrcoef(measured['score'], measured['unseen'])[0, 1]:.2f}")
            for name, damage in predicted.items():
                found = {on: np.corrcoef(damage[picks].sum(1), kl)[0, 1] for on, kl in measured.items()}
                print(f"     {name:24}" + "".join(f"  {on} r = {r:.2f}" for on, r in found.items()), flush=True)


def neighbour(search: Search, pick: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """``pick`` (layers,) with other choices in a few layers."""
    decoder, near = search.proposals.decoder, pick.copy()
    size = np.log(np.maximum(decoder.damage, 1e-9))
    for k in rng.choice(len(pick), rng.choice(CHANGED), replace=False):
        like = np.flatnonzero((decoder.layer == k) & (np.abs(size - size[pick[k]]) < 1))
        if len(like := like[like != pick[k]]):
            near[k] = rng.choice(like)
    return near


def changes(search: Search, evaluator: Evaluator, plan: Plan, picks: NDArray[np.int64]) -> Floats:
    """``(n,)`` KL of each pick above that of ``plan``."""
    plans = [plan, *(search.proposals.decoder.plan(pick) for pick in picks)]
    kl = np.array([evaluator.score(search.profile.fits(p), "neighbour").score.kl for p in plans])
    return kl[1:] - kl[0]


def local(search: Search, plan: Plan, examples: Examples) -> Floats:
    """``(choices,)`` change of KL on ``examples`` if a layer of ``plan`` took another choice, to second order at the plan."""
    evaluator, names = search.evaluator, search.proposals.decoder.names
    expected, task = evaluator.outputs_of(examples), evaluator.task
    dense = [evaluator.work.get_parameter(f"{name}.weight").detach().clone() for name in names]  # which it is now
    evaluator.score(search.profile.fits(plan), "gradient")
    weights = [evaluator.work.get_parameter(f"{name}.weight").requires_grad_(True) for name in names]
    gradient = [torch.zeros_like(w) for w in weights]
    sketches: list[list[Tensor]] = [[] for _ in weights]
    generator = torch.Generator().manual_seed(0)
    for batch, reference in expected.batches(BATCH):
        outputs = task.run(evaluator.work, batch.inputs)
        found = torch.autograd.grad(task.divergence(outputs, reference).sum(), weights, retain_graph=True)
        gradient = [total + g / len(examples) for total, g in zip(gradient, found, strict=True)]
        for _ in range(SKETCHES):
            for kept, g in zip(sketches, torch.autograd.grad(projected(task, outputs, generator), weights, retain_graph=True), strict=True):
                kept.append(g.flatten() / len(batch) ** 0.5)
    for w in weights:
        w.requires_grad_(False)
    return np.concatenate([of_layer(search, plan, *each) for each in zip(names, dense, gradient, sketches, strict=True)])


def projected(task: Task, outputs: Outputs, generator: torch.Generator) -> Tensor:
    """Sum of the outputs times random v; E[v vᵀ] is the Hessian of the divergence, see :meth:`lrsearch.task.base.Task.projections`."""
    directions = task.projections(tree_map_only(Tensor, Tensor.detach, outputs), 1.0, generator)
    return (tensors(outputs)[0] * tensors(directions)[0]).sum()


def of_layer(search: Search, plan: Plan, name: str, dense: Tensor, gradient: Tensor, sketches: list[Tensor]) -> Floats:
    """:func:`local` for the choices of one layer; the working copy has the plan's own afterwards."""
    work, profile = search.evaluator.work, search.profile

    @torch.no_grad()
    def weight(choice: LayerPlan) -> Tensor:
        if choice.untouched:
            return dense.flatten()
        write_effective(work, profile.fits(Plan({name: choice})))
        return work.get_parameter(f"{name}.weight").detach().flatten().clone()

    moved = torch.stack([weight(choice) for choice in (*profile.menus[name], plan[name])])
    moved = moved[:-1] - moved[-1]
    quadratic = (moved @ torch.stack(sketches).T).square().mean(1) / 2
    return (moved @ gradient.flatten() + quadratic).double().numpy()


if __name__ == "__main__":
    main()
