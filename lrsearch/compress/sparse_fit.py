"""S near a target, in the norm of the layer's inputs: its support by ADMM, its values by least squares.

Everything here is in coordinates scaled so that every input has unit energy: the Gram matrix has
ones on its diagonal, and the largest values are those that Wanda and OATS keep.
"""

from functools import cached_property

import torch
from torch import Tensor

from lrsearch.compress.linalg import eigh
from lrsearch.compress.sparsify import select
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.pattern import Pattern

PENALTIES = tuple(0.1 * 1.35**k for k in range(12))  # of ADMM's steps, which end where the support has settled
COLD = tuple(p for p in PENALTIES for _ in range(4))
ROUGH = PENALTIES[::2]
WARM = tuple(p for p in PENALTIES for _ in range(2))
MOST_CACHED = 2**26
STEPS, GAIN = 10, 1e-3


class SparseFit:
    """Fits S to targets ``(groups, rows, columns)`` under one scaled Gram matrix.

    A target T comes as ``linear`` = T G, which is all that a fit needs of it.

    Args:
        layer: the layer's spec.
        gram: G, ``(groups, columns, columns)``, ones on its diagonal.
    """

    def __init__(self, layer: LayerSpec, gram: Tensor) -> None:
        self.layer, self.gram = layer, gram
        self._inverses: dict[float, Tensor] = {}

    @cached_property
    def eigen(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues and eigenvectors of G."""
        return eigh(self.gram)

    def energy(self, residual: Tensor) -> float:
        """tr(residual G residualᵀ)."""
        return float(((residual @ self.gram) * residual).sum())

    def top(self, values: Tensor, kind: Pattern, kept: int) -> Tensor:
        """``values`` where the pattern keeps them, else zero."""
        return values * select(values, self.layer, kind, kept)

    def step(self, linear: Tensor, s: Tensor, dual: Tensor, rho: float, kind: Pattern, kept: int) -> tuple[Tensor, Tensor]:
        """One ADMM step (ALPS, Meng et al. 2024, algorithm 1): the next S and dual variable."""
        dense = (linear - dual + rho * s) @ self._inverse(rho)
        s = self.top(dense + dual / rho, kind, kept)
        return s, dual + rho * (dense - s)

    def _inverse(self, rho: float) -> Tensor:
        """(G + ρ)⁻¹, kept for the next choice."""
        if rho not in self._inverses:
            if len(self._inverses) * self.gram.numel() > MOST_CACHED:
                self._inverses.clear()
            values, vectors = self.eigen
            self._inverses[rho] = (vectors / (values.clamp_min(0) + rho)[:, None, :]) @ vectors.mT
        return self._inverses[rho]

    def refine(self, target: Tensor, linear: Tensor, s: Tensor, steps: int) -> tuple[Tensor, float]:
        """Least-squares values of S on its support, and the error tr((T − S) G (T − S)ᵀ) they reach.

        Conjugate gradients, all rows at once; ends where a step gains less than ``GAIN`` of the error.
        """
        mask = s != 0
        gradient = linear - s @ self.gram
        error = float(((target - s) * gradient).sum())
        r = gradient * mask
        p, size = r, r.square().sum(-1, keepdim=True)
        for _ in range(steps):
            ap = (p @ self.gram) * mask
            alpha = size / (p * ap).sum(-1, keepdim=True).clamp_min(1e-30)
            gain = float((alpha * size).sum())
            s, r = s + alpha * p, r - alpha * ap
            error -= gain
            if gain < GAIN * error:
                break
            last, size = size, r.square().sum(-1, keepdim=True)
            p = r + size / last.clamp_min(1e-30) * p
        return s, error

    def fit(
        self, target: Tensor, linear: Tensor, kind: Pattern, kept: int, start: Tensor | None = None, rough: bool = False,
    ) -> Tensor:
        """S of ``kept`` values near ``target``; never worse than the target's largest magnitudes.

        The penalties follow a fixed schedule, so that every inverse is computed once per layer.

        Args:
            start: S of a neighbouring fit, which shortens the schedule.
            rough: take the shortest schedule: good enough to compare by.
        """
        if kept == target.numel():
            return target
        plain = self.top(target, kind, kept)
        s, dual = plain if start is None else self.top(start, kind, kept), torch.zeros_like(target)
        for rho in ROUGH if rough else COLD if start is None else WARM:
            s, dual = self.step(linear, s, dual, rho, kind, kept)
        s, error = self.refine(target, linear, s, STEPS)
        return s if error <= self.energy(target - plain) else self.refine(target, linear, plain, STEPS)[0]
