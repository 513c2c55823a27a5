"""How far a Gram matrix of few examples is damped and shrunk before a layer is fitted under it."""

from collections.abc import Iterable
from functools import cache, lru_cache
from math import inf

import torch
from torch import Tensor

from lrsearch.compress.fit import FitProblem, Shrinkage
from lrsearch.compress.matricize import times
from lrsearch.compress.sparse_fit import ROUGH, STEPS, SparseFit
from lrsearch.spec.formats import FORMATS
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.pattern import pattern
from lrsearch.spec.plan import LayerPlan

SAMPLED = 256  # rows of each group: in layers of ViT-S the errors of fits are 0.992 to 1.008 times those that all rows lead to
DAMPINGS, SUPPORT, VALUES, LOW_RANK = (0.001, 0.01, 0.1, 0.3), (0.0, 0.05, 0.2, 0.4), (0.0, 0.2), (1.0, 5.0, 25.0)
Errors = dict[Shrinkage, float]


def best_shrinkage(layer: LayerSpec, weight: Tensor, gram: Tensor, check: Tensor) -> Shrinkage:
    """How far to damp and shrink ``gram`` so that fits are best under ``check``, the Gram matrix of other inputs.

    Few examples give a Gram matrix whose small eigenvalues are far too small; a fit then hides its error where those examples
    do not look. Values suffer more from that than the choice of the support does; inputs that are seldom active, from too little
    damping. Tried with an S of half of the values of some rows, which are fitted each by itself: dampings, then each support's share,
    until one is worse than the one before; then an SVD of a quarter of the ranks, which may need more damping.
    """
    rows = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(0))[:SAMPLED].sort().values
    some = weight[:, rows.to(weight.device)]
    kind, kept = pattern("unstructured"), some.numel() // 2

    @lru_cache(maxsize=1)  # each has several matrices of the size of ``gram``
    def damped(damping: float) -> FitProblem:
        return FitProblem(layer, some, gram, Shrinkage(damping=damping))

    @cache
    def errors(damping: float, share: float) -> Errors:
        problem = damped(damping)
        target, solver, found = problem.target, problem.solver.shrunk(share), {}
        s = solver.search(solver.times(target), kind, kept, solver.top(target, kind, kept), ROUGH)
        for ridge in VALUES:
            values, _ = SparseFit(layer, solver.gram, ridge).refine(target, s, STEPS)
            rest = (target - values) / problem.scale
            found[Shrinkage(share, ridge, damping)] = float((times(rest, check) * rest).sum())
        return found

    damping = _until_worse(errors(damping, 0.0) for damping in DAMPINGS).damping
    found = _until_worse(errors(damping, share) for share in SUPPORT)
    return found if FORMATS["svd"].refusal(layer) else _with_low_rank(found, layer, weight, gram, check)


def _with_low_rank(found: Shrinkage, layer: LayerSpec, weight: Tensor, gram: Tensor, check: Tensor) -> Shrinkage:
    """``found``, and how much more an SVD of a quarter of the ranks needs to be damped."""
    plan = LayerPlan("svd", FORMATS["svd"].rank(layer, 0.25), 0.0)

    def errors(shrinkage: Shrinkage) -> Errors:
        rest = weight - FitProblem(layer, weight, gram, shrinkage).fit(plan).effective()
        return {shrinkage: float((times(rest, check) * rest).sum())}

    return _until_worse(errors(found._replace(low_rank=k)) for k in LOW_RANK)


def _until_worse(trials: Iterable[Errors]) -> Shrinkage:
    """The best of the trials before one that is no better than the one before."""
    best, least = Shrinkage(), inf
    for errors in trials:
        found = min(errors, key=errors.__getitem__)
        if errors[found] >= least:
            break
        best, least = found, errors[found]
    return best
