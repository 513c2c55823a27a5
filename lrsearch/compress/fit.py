"""W ≈ L + S under the statistics of the layer's inputs.

Every fit minimises tr(D (W − L − S) C (W − L − S)ᵀ), the expected squared error of the layer's
output, with C = E[xxᵀ] the Gram matrix of its inputs, and D a weight for each output: how much
the network's output depends on it. A :class:`FitProblem` is prepared once per layer and then
serves every choice.
"""

from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import torch
from torch import Tensor

from lrsearch.compress.formats.base import Factors, leading, low_rank
from lrsearch.compress.joint_fit import fit_both
from lrsearch.compress.linalg import cholesky
from lrsearch.compress.live_gram import LiveGram
from lrsearch.compress.sparse_fit import SparseFit
from lrsearch.compress.sparsify import select
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.pattern import Pattern, pattern
from lrsearch.spec.plan import LayerPlan

DAMPING = 0.01  # share of a Gram matrix's mean diagonal that is added to its diagonal
SMALL = 2**19  # multiply-accumulates of a product with the Gram matrix
REPEATS_SMALL, REPEATS = 2, 1  # steps of ADMM with each penalty, for S alone


class Shrinkage(NamedTuple):
    """By which shares a Gram matrix is drawn to its diagonal, in [0, 1), and how far its diagonal is raised.

    Attributes:
        support: first of all.
        values: once more, for all but the search for the support of S.
        damping: the share of the mean of its diagonal that is added to every value of it, above 0.
        low_rank: what ``damping`` is multiplied by for L without S.
    """

    support: float = 0.0
    values: float = 0.0
    damping: float = DAMPING
    low_rank: float = 1.0

    @property
    def whole(self) -> float:
        """Both together."""
        return self.support + self.values - self.support * self.values

    @property
    def alone(self) -> "Shrinkage":
        """That for L without S."""
        return Shrinkage(self.support, self.values, self.damping * self.low_rank)


UNSHRUNK = Shrinkage()


@dataclass
class Decomposition:
    """W ≈ L + S of one layer.

    Attributes:
        layer: the layer's spec.
        plan: the format of L, the pattern of S.
        factors: those of L, shaped as the format says; empty without a low-rank part.
        sparse: S, ``(groups, rows / groups, columns)``, zero outside ``mask``.
        mask: bool, the kept positions of ``sparse``.
    """

    layer: LayerSpec
    plan: LayerPlan
    factors: Factors
    sparse: Tensor
    mask: Tensor

    def low_rank(self) -> Tensor:
        """L, ``(groups, rows / groups, columns)``; there must be one."""
        return low_rank(self.plan.format).compose(self.layer, self.factors)

    def effective(self) -> Tensor:
        """L + S, ``(groups, rows / groups, columns)``."""
        return self.sparse + self.low_rank() if self.factors else self.sparse


class FitProblem:
    """One layer's weight and Gram matrix, and the same scaled so that every input has unit energy.

    The Gram matrix is damped (SparseGPT, Frantar & Alistarh 2023), by 1 % of its mean diagonal if nothing says better, which
    covers singular matrices, dead inputs and few examples alike; ``gram`` and all errors are in units of that mean.

    Args:
        layer: the layer's spec.
        weight: ``(groups, rows, columns)``, any floating type.
        gram: ``(groups, columns, columns)``, or in blocks where these are too many, ``layer.gram_shape``.
        shrinkage: how far the Gram matrix is first damped, and drawn to its diagonal; see
            :func:`~lrsearch.compress.shrinkage.best_shrinkage`.
        importance: the diagonal of D, ``(groups, rows, 1)``, above 0; all 1 if None. As D is diagonal, a fit with it
            is a fit to D^½ W whose rows are scaled back; formats whose rows cannot be (``tt`` of a matrix) go without.

    Attributes:
        weight: D^½ W, ``(groups, rows, columns)``.
        scale: ``(groups, 1, columns)``: root of the energy of each input.
        target: ``weight`` times ``scale``.
        solver: fits S to ``target``, in coordinates that ``scale`` makes.
    """

    def __init__(
        self, layer: LayerSpec, weight: Tensor, gram: Tensor, shrinkage: Shrinkage = UNSHRUNK, importance: Tensor | None = None,
    ) -> None:
        self._with = partial(FitProblem, layer, weight, gram)
        self._shrinkage, self._importance = shrinkage, importance
        rows = weight.new_ones(1, 1, 1) if importance is None else importance.sqrt()
        self.layer, self._rows = layer, rows.to(torch.float32)
        self.weight = weight.to(torch.float32) * self._rows
        gram = shrunk(gram.to(torch.float32), shrinkage.support)
        gram = gram / gram.diagonal(dim1=1, dim2=2).mean().clamp_min(1e-30)  # whatever the units of the inputs
        gram = gram + shrinkage.damping * torch.eye(gram.shape[1], device=gram.device)
        self.gram = shrunk(gram, shrinkage.values)
        self._products = LiveGram(self.gram)
        self._sizes = gram.diagonal(dim1=1, dim2=2).sqrt()[:, None, :]
        self.scale = self._sizes.reshape(layer.groups, 1, layer.columns)
        self.solver = SparseFit(layer, gram / (self._sizes.mT * self._sizes), shrinkage.values)
        self.target = self.weight * self.scale

    @cached_property
    def linear(self) -> Tensor:
        """``target`` times the solver's Gram matrix, ``(groups, rows, columns)``."""
        return self.solver.times(self.target)

    def times(self, x: Tensor) -> Tensor:
        """``x`` (groups, n, columns) times ``gram``."""
        return self._products.times(x)

    @cached_property
    def scaled_gram(self) -> Tensor:
        """Shaped like ``gram``: X times it is X, scaled, times the solver's Gram matrix."""
        return self._sizes.mT * self.solver.gram

    @cached_property
    def even(self) -> "FitProblem":
        """The same, all outputs being of equal importance."""
        return self._with(self._shrinkage)

    @property
    def alone(self) -> "FitProblem":
        """The same for L without S."""
        return self if self._shrinkage.low_rank == 1 else self._damped_alone

    @cached_property  # never of itself, which would keep its matrices until the garbage collector runs
    def _damped_alone(self) -> "FitProblem":
        return self._with(self._shrinkage.alone, self._importance)

    @cached_property
    def root(self) -> Tensor:
        """Shaped like ``gram``, with ``root @ root.mT == gram``."""
        return self._sizes.mT * cholesky(shrunk(self.solver.gram, self.solver.ridge))

    @cached_property
    def basis(self) -> Tensor:
        """``(groups, rows, min(rows, columns))``: orthonormal; the first r columns span the best L of rank r."""
        return leading(self.weight, self)

    def error(self, effective: Tensor) -> float:
        """tr(D (W − effective) C (W − effective)ᵀ), C damped."""
        rest = self.weight - effective * self._rows
        return float((self.times(rest) * rest).sum())

    def fit(self, plan: LayerPlan) -> Decomposition:
        """What the layer becomes under ``plan``."""
        if plan.rank and self._importance is not None and not low_rank(plan.format).chained(self.layer):
            return self.even.fit(plan)
        kept, kind = plan.kept(self.layer), pattern(plan.pattern)
        if not plan.rank:
            return self._whole(plan, (), self.sparse(kind, kept) if kept else torch.zeros_like(self.weight))
        if not kept:
            alone = self.alone
            return self._whole(plan, low_rank(plan.format).fit(alone.weight, alone, plan.rank), torch.zeros_like(self.weight))
        return self._whole(plan, *fit_both(self, plan))

    @property
    def small(self) -> bool:
        """Whether no time worth having is gained by fewer steps."""
        return self.weight.numel() * self.gram.shape[-1] <= SMALL

    def sparse(self, kind: Pattern, kept: int) -> Tensor:
        """S without L, times ``scale``."""
        return self.solver.fit(self.target, self.linear, kind, kept, REPEATS_SMALL if self.small else REPEATS)

    def _whole(self, plan: LayerPlan, factors: Factors, s: Tensor) -> Decomposition:
        mask = s != 0
        kept = plan.kept(self.layer)
        if int(mask.sum()) != kept:  # a kept value happens to be zero
            mask = select(s, self.layer, pattern(plan.pattern), kept)
        if factors:  # the last has a row per output, or all outputs are of equal importance
            *others, last = factors
            factors = *others, last / self._rows.reshape(-1, *[1] * (last.dim() - 1))
        return Decomposition(self.layer, plan, factors, s / self.scale / self._rows, mask)


def shrunk(gram: Tensor, share: float) -> Tensor:
    """``gram`` with its off-diagonal values reduced by ``share`` (Ledoit & Wolf 2004, towards the diagonal)."""
    return gram if not share else (1 - share) * gram + share * torch.diag_embed(gram.diagonal(dim1=1, dim2=2))
