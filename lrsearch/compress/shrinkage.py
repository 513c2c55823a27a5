"""How far a Gram matrix of few examples is shrunk before a layer is fitted under it."""

from math import inf

from torch import Tensor

from lrsearch.compress.fit import FitProblem, Shrinkage
from lrsearch.compress.sparse_fit import ROUGH, STEPS, SparseFit
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.pattern import pattern
from lrsearch.spec.plan import LayerPlan

SUPPORT, VALUES = (0.0, 0.05, 0.2, 0.4), (0.0, 0.2)


def best_shrinkage(layer: LayerSpec, weight: Tensor, gram: Tensor, check: Tensor) -> Shrinkage:
    """How far to shrink ``gram`` so that fits are best under ``check``, the Gram matrix of other inputs.

    Few examples give a Gram matrix whose small eigenvalues are far too small; a fit then hides
    its error where those examples do not look. Values suffer more from that than the choice of the support does.
    Tried with an S of half of the values, each support's share until one is worse than the one before.
    """
    problem = FitProblem(layer, weight, gram)
    target, kind, kept = problem.target, pattern("unstructured"), LayerPlan(density=0.5).kept(layer)
    best, least = Shrinkage(), inf
    for share in SUPPORT:
        solver = problem.solver.shrunk(share)
        s = solver.search(target @ solver.gram, kind, kept, solver.top(target, kind, kept), ROUGH)
        errors = {}
        for ridge in VALUES:
            values, _ = SparseFit(layer, solver.gram, ridge).refine(target, s, STEPS)
            rest = (target - values) / problem.scale
            errors[Shrinkage(share, ridge)] = float(((rest @ check) * rest).sum())
        found = min(errors, key=errors.__getitem__)
        if errors[found] >= least:
            break
        best, least = found, errors[found]
    return best
