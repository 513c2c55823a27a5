"""W ≈ L + S under the statistics of the layer's inputs.

Every fit minimises tr((W − L − S) C (W − L − S)ᵀ), the expected squared error of the layer's
output, with C = E[xxᵀ] the Gram matrix of its inputs. A :class:`FitProblem` is prepared once
per layer and then serves every choice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lrsearch.compress.formats.base import Factors, low_rank
from lrsearch.compress.linalg import eigh
from lrsearch.compress.sparsify import select
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.pattern import Pattern, pattern
from lrsearch.spec.plan import LayerPlan

DAMPING = 0.01
PENALTIES = tuple(0.1 * 1.35**k for k in range(12))
WARM = slice(3, 7)
ROUNDS = 10
MOST_CACHED = 2**26
SHRINKAGES = (0.0, 0.05, 0.2, 0.4)
REFINE_STEPS = 10


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

    The Gram matrix is damped by 1 % of its mean diagonal (SparseGPT, Frantar & Alistarh
    2023), which covers singular matrices, dead inputs and few examples alike.

    Args:
        layer: the layer's spec.
        weight: ``(groups, rows, columns)``, any floating type.
        gram: ``(groups, columns, columns)``.
        shrinkage: in [0, 1), by which the Gram matrix is first drawn to its diagonal; see :func:`best_shrinkage`.
    """

    def __init__(self, layer: LayerSpec, weight: Tensor, gram: Tensor, shrinkage: float = 0.0) -> None:
        self.layer, self.weight = layer, weight.to(torch.float32)
        gram = shrunk(gram.to(torch.float32), shrinkage)
        ridge = DAMPING * gram.diagonal(dim1=1, dim2=2).mean().clamp_min(1e-12)
        self.gram = gram + ridge * torch.eye(gram.shape[1], device=gram.device)
        self.scale = self.gram.diagonal(dim1=1, dim2=2).sqrt()[:, None, :]
        self._scaled = self.gram / (self.scale.mT * self.scale)
        self._inverses: dict[float, Tensor] = {}

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        return eigh(self._scaled)

    @cached_property
    def root(self) -> Tensor:
        """``(groups, columns, columns)`` with ``root @ root.mT == gram``."""
        values, vectors = self._eigen
        return self.scale.mT * vectors * values.clamp_min(0).sqrt()[:, None, :]

    def error(self, effective: Tensor) -> float:
        """tr((W − effective) C (W − effective)ᵀ), C damped."""
        rest = self.weight - effective
        return float(((rest @ self.gram) * rest).sum())

    def fit(self, plan: LayerPlan, start: Decomposition | None = None) -> Decomposition:
        """What the layer becomes under ``plan``.

        Args:
            start: a neighbouring fit: its S, if the pattern is the same, and its factors, if
                format and rank are, warm-start this one.
        """
        kept, kind = plan.kept(self.layer), pattern(plan.pattern)
        s = start.sparse * self.scale if start is not None and start.plan.pattern == plan.pattern else None
        if not plan.rank:
            return self._whole(plan, (), self._sparse(self.weight * self.scale, kind, kept, s))
        if not kept:
            return self._whole(plan, low_rank(plan.format).fit(self.weight, self, plan.rank), torch.zeros_like(self.weight))
        if s is not None and start is not None:
            same = (start.plan.format, start.plan.rank) == (plan.format, plan.rank)
            return self._both(plan, self._top(s, kind, kept), start.factors if same else None, 0, PENALTIES[::2])
        sparse_first = self._both(plan, self._sparse(self.weight * self.scale, kind, kept, None), None, 0, PENALTIES)
        low_rank_first = self._both(plan, torch.zeros_like(self.weight), None, ROUNDS, PENALTIES)
        return min((low_rank_first, sparse_first), key=lambda fit: self.error(fit.effective()))

    def plain(self, kept: int) -> Tensor:
        """The largest ``kept`` values of the scaled weight, with least-squares values."""
        target = self.weight * self.scale
        return self._refine(target, self._top(target, Pattern("unstructured"), kept), REFINE_STEPS) / self.scale

    def _both(self, plan: LayerPlan, s: Tensor, factors: Factors | None, rounds: int, penalties: Sequence[float]) -> Decomposition:
        """L + S from the scaled S ``s``.

        First ``rounds`` of plain alternation (L by its own fit, S the largest values of what is
        left, as in OATS), then ADMM on the support of S with L fitted again at every second
        step, at last two rounds of least squares on the support found.
        """
        form, kept, kind = low_rank(plan.format), plan.kept(self.layer), pattern(plan.pattern)
        w = self.weight * self.scale

        def rest() -> Tensor:
            """W − L, scaled, L being fitted to W − S."""
            nonlocal factors
            factors = form.fit(self.weight - s / self.scale, self, plan.rank, factors)
            return w - form.compose(self.layer, factors) * self.scale

        target = rest()
        for _ in range(rounds):
            s = self._top(target, kind, kept)
            target = rest()
        if not bool(s.any()):
            s = self._top(target, kind, kept)
        dual = torch.zeros_like(s)
        for rho in penalties:
            for _ in range(2):
                s, dual = self._admm(target @ self._scaled, s, dual, rho, kind, kept)
            target = rest()
        for _ in range(2):
            s = self._refine(target, s, REFINE_STEPS // 2)
            target = rest()
        assert factors is not None
        return self._whole(plan, factors, self._refine(target, s, REFINE_STEPS // 2))

    def _whole(self, plan: LayerPlan, factors: Factors, s: Tensor) -> Decomposition:
        mask = s != 0
        kept = plan.kept(self.layer)
        if int(mask.sum()) != kept:  # a kept value happens to be zero
            mask = select(s, self.layer, pattern(plan.pattern), kept)
        return Decomposition(self.layer, plan, factors, s / self.scale, mask)

    def _sparse(self, target: Tensor, kind: Pattern, kept: int, start: Tensor | None) -> Tensor:
        """S of ``kept`` values near ``target`` in the Gram norm, all in scaled coordinates.

        The support comes from ADMM (ALPS, Meng et al. 2024, algorithm 1) on a fixed schedule of
        penalties, so that every inverse is computed once per layer; the values by least squares.
        Never worse than the largest magnitudes of the target.
        """
        if kept == target.numel():
            return target
        linear = target @ self._scaled
        plain = self._top(target, kind, kept)
        s = plain if start is None else self._top(start, kind, kept)
        dual = torch.zeros_like(target)
        for rho in PENALTIES if start is None else PENALTIES[WARM]:
            for _ in range(4 if start is None else 2):
                s, dual = self._admm(linear, s, dual, rho, kind, kept)
        s = self._refine(target, s, REFINE_STEPS)
        return s if self._energy(target - s) <= self._energy(target - plain) else self._refine(target, plain, REFINE_STEPS)

    def _admm(self, linear: Tensor, s: Tensor, dual: Tensor, rho: float, kind: Pattern, kept: int) -> tuple[Tensor, Tensor]:
        """One step: the next S and dual variable; ``linear`` is target @ scaled C."""
        dense = (linear - dual + rho * s) @ self._inverse(rho)
        s = self._top(dense + dual / rho, kind, kept)
        return s, dual + rho * (dense - s)

    def _top(self, values: Tensor, kind: Pattern, kept: int) -> Tensor:
        return values * select(values, self.layer, kind, kept)

    def _inverse(self, rho: float) -> Tensor:
        """(scaled C + ρ)⁻¹, kept for the next choice."""
        if rho not in self._inverses:
            if len(self._inverses) * self.gram.numel() > MOST_CACHED:
                self._inverses.clear()
            values, vectors = self._eigen
            self._inverses[rho] = (vectors / (values.clamp_min(0) + rho)[:, None, :]) @ vectors.mT
        return self._inverses[rho]

    def _energy(self, residual: Tensor) -> float:
        return float(((residual @ self._scaled) * residual).sum())

    def _refine(self, target: Tensor, s: Tensor, steps: int) -> Tensor:
        """Least-squares values of S on its support: conjugate gradients, all rows at once."""
        mask = s != 0
        r = ((target - s) @ self._scaled) * mask
        p, energy = r, (r * r).sum(-1, keepdim=True)
        for _ in range(steps):
            ap = (p @ self._scaled) * mask
            alpha = energy / (p * ap).sum(-1, keepdim=True).clamp_min(1e-30)
            s, r = s + alpha * p, r - alpha * ap
            last, energy = energy, (r * r).sum(-1, keepdim=True)
            p = r + energy / last.clamp_min(1e-30) * p
        return s


def shrunk(gram: Tensor, share: float) -> Tensor:
    """``gram`` with its off-diagonal values reduced by ``share`` (Ledoit & Wolf 2004, towards the diagonal)."""
    return gram if not share else (1 - share) * gram + share * torch.diag_embed(gram.diagonal(dim1=1, dim2=2))


def best_shrinkage(layer: LayerSpec, weight: Tensor, gram: Tensor, check: Tensor) -> float:
    """How far to shrink ``gram`` so that fits are best under ``check``, the Gram matrix of other inputs.

    Few examples give a Gram matrix whose small eigenvalues are far too small; a fit then hides
    its error where those examples do not look. Tried with the largest 30 % of the scaled
    weights and their least-squares values, which take no time.
    """

    def error(share: float) -> float:
        problem = FitProblem(layer, weight, gram, share)
        rest = problem.weight - problem.plain(round(0.3 * layer.numel))
        return float(((rest @ check) * rest).sum())

    return min(SHRINKAGES, key=error)
