"""L and S of one layer together: each is fitted to what the other leaves, in turn."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lrsearch.compress.formats.base import Factors, LowRank, Problem
from lrsearch.compress.sparse_fit import STEPS, SparseFit
from lrsearch.spec.pattern import Pattern

CHUNK, MOST_CHUNKS, LEAST_GAIN = 10, 8, 0.05
PROMISING = 1.15


class JointFit:
    """The L and S of a layer on their way to the best pair.

    Args:
        problem: the layer's weight and Gram matrix.
        solver: fits S, in coordinates that ``scale`` makes.
        scale: ``(groups, 1, columns)``.
        form: the format of L.
        rank: of L.
        kind: the pattern of S.
        kept: number of values of S.
        s: the scaled S to start from; may be zero.
        factors: those of L to start from.

    Attributes:
        s: the scaled S, ``(groups, rows, columns)``.
        factors: those of L.
        target: W − L, scaled.
    """

    def __init__(
        self, problem: Problem, solver: SparseFit, scale: Tensor, form: LowRank, rank: tuple[int, ...], kind: Pattern, kept: int,
        s: Tensor, factors: Factors | None = None,
    ) -> None:
        self.problem, self.solver, self.scale, self.form, self.rank = problem, solver, scale, form, rank
        self.kind, self.kept, self.s = kind, kept, s
        self._fit_low_rank(factors)

    def _fit_low_rank(self, start: Factors | None) -> None:
        """L to W − S."""
        weight = self.problem.weight
        self.factors = self.form.fit(weight - self.s / self.scale, self.problem, self.rank, start)
        self.target = (weight - self.form.compose(self.problem.layer, self.factors)) * self.scale

    def alternate(self, rounds: int) -> None:
        """S the largest values of W − L, then L again, as in OATS (Zhang & Papyan 2024)."""
        for _ in range(rounds):
            self.s = self.solver.top(self.target, self.kind, self.kept)
            self._fit_low_rank(self.factors)

    def search_support(self, penalties: Sequence[float]) -> None:
        """ADMM on the support of S, L being fitted again at every second step."""
        if not bool(self.s.any()):
            self.s = self.solver.top(self.target, self.kind, self.kept)
        dual = torch.zeros_like(self.s)
        for rho in penalties:
            linear = self.target @ self.solver.gram
            for _ in range(2):
                self.s, dual = self.solver.step(linear, self.s, dual, rho, self.kind, self.kept)
            self._fit_low_rank(self.factors)

    def settle(self) -> float:
        """Alternate for as long as that gains; returns the error."""
        error = self.error()
        for _ in range(MOST_CHUNKS):
            self.alternate(CHUNK)
            before, error = error, self.error()
            if error > (1 - LEAST_GAIN) * before:
                break
        return error

    def refine(self) -> None:
        """Least squares on the support of S."""
        for last in (False, False, True):
            self.s, _ = self.solver.refine(self.target, self.s, STEPS // 2)
            if not last:
                self._fit_low_rank(self.factors)

    def error(self) -> float:
        return self.solver.energy(self.target - self.s)

    def best(self, penalties: Sequence[float]) -> tuple[Factors, Tensor]:
        """Factors and scaled S: the better of what ADMM finds, and of what alternation makes of it.

        Least squares gains more where alternation was: what it left better before them is better after,
        and may be so from ``PROMISING`` times the other's error down.
        """
        self.search_support(penalties)
        found, error = self._pair(), self.error()
        share = self.settle() / max(error, 1e-30)
        settled = self._pair()
        refined = [self._refined(*pair) for pair in ([settled] if share <= 1 else [found, settled] if share < PROMISING else [found])]
        return min(refined, key=lambda pair: pair[0])[1]

    def _pair(self) -> tuple[Factors, Tensor, Tensor]:
        return self.factors, self.s, self.target

    def _refined(self, factors: Factors, s: Tensor, target: Tensor) -> tuple[float, tuple[Factors, Tensor]]:
        self.factors, self.s, self.target = factors, s, target
        self.refine()
        return self.error(), (self.factors, self.s)
