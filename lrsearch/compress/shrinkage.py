"""How far a Gram matrix of few examples is shrunk before a layer is fitted under it."""

from torch import Tensor

from lrsearch.compress.fit import FitProblem
from lrsearch.spec.layer import LayerSpec

SHRINKAGES = (0.0, 0.05, 0.2, 0.4)


def best_shrinkage(layer: LayerSpec, weight: Tensor, gram: Tensor, check: Tensor) -> float:
    """How far to shrink ``gram`` so that fits are best under ``check``, the Gram matrix of other inputs.

    Few examples give a Gram matrix whose small eigenvalues are far too small; a fit then hides
    its error where those examples do not look. Tried with an S of half of the values.
    """

    def error(share: float) -> float:
        rest = weight - FitProblem(layer, weight, gram, share).rough(0.5)
        return float(((rest @ check) * rest).sum())

    return min(SHRINKAGES, key=error)
