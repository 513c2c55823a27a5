"""Problems with correlated inputs, and their fits."""

import torch

from lrsearch.compress.fit import FitProblem
from lrsearch.compress.matricize import gram
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.plan import LayerPlan


def problem_of(weight, c):
    """The problem of a weight ``(groups, rows, columns)``, as a 1x1 convolution."""
    groups, rows, columns = weight.shape
    return FitProblem(LayerSpec("layer", "conv2d", (groups * rows, columns, 1, 1), groups), weight, c)


def fit_of(problem, rank, kept):
    plan = LayerPlan("svd" if rank else "dense", (rank,) if rank else (), kept / problem.weight.numel())
    return problem.fit(plan)


def relative_error(weight, effective, gram):
    """Squared output error over the output's energy: the Gram norm of ``weight - effective``."""
    rest = weight - effective
    return float(((rest @ gram) * rest).sum() / ((weight @ gram) * weight).sum())


def correlated(shape, seed=0):
    """A weight ``(groups, rows, columns)`` and the Gram matrix of correlated, non-negative inputs."""
    groups, _, columns = shape
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(groups, 8 * columns, columns, generator=generator) @ torch.randn(groups, columns, columns, generator=generator)).relu()
    return torch.randn(shape, generator=generator), gram(x) / (8 * columns)
