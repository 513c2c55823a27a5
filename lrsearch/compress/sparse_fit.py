"""S near a target, in the norm of the layer's inputs: its support by ADMM, its values by least squares.

Everything here is in coordinates scaled so that every input has unit energy: the Gram matrix has
ones on its diagonal, and the largest values are those that Wanda and OATS keep.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from lrsearch.compress.linalg import cholesky, eigh
from lrsearch.compress.live_gram import LiveGram
from lrsearch.compress.matricize import times
from lrsearch.compress.sparsify import largest, select
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.memory import memory_share
from lrsearch.spec.pattern import Pattern

PENALTIES = tuple(np.geomspace(0.05, 0.8, 24).tolist())  # of ADMM's steps
ROUGH = PENALTIES[::3]
SETTLED = 0.001  # share of the kept values
MOST_CACHED = memory_share(1, 24) // 4  # float32 values of the inverses of one layer; each thread fits another
STEPS, GAIN = 10, 1e-3  # of conjugate gradients: at most; share of the error that a step must gain


class SparseFit:
    """Fits S to targets ``(groups, rows, columns)`` under one scaled Gram matrix.

    Args:
        layer: the layer's spec.
        gram: G, ``(groups, columns, columns)`` or in blocks, ones on its diagonal.
        ridge: in [0, 1), by which G is drawn to the unit matrix for values and errors; supports are searched under G itself.
        once: each penalty is used once, so that no inverse is worth its time.
    """

    def __init__(self, layer: LayerSpec, gram: Tensor, ridge: float = 0.0, once: bool = False) -> None:
        self.layer, self.gram, self.ridge, self._once = layer, gram, ridge, once
        self._live = LiveGram(gram)
        self._inverses: dict[float, Tensor] = {}

    def shrunk(self, share: float) -> "SparseFit":
        """That of G drawn to the unit matrix, supports and all, for a single search."""
        return SparseFit(self.layer, _raised((1 - share) * self.gram, share) if share else self.gram, once=True)

    def times(self, x: Tensor) -> Tensor:
        """X G."""
        return self._live.times(x)

    @cached_property
    def eigen(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues and eigenvectors of G, without the inputs that occur with no other."""
        return eigh(self._live.core)

    def energy(self, residual: Tensor) -> float:
        """tr(residual G residualᵀ), G drawn by ``ridge``."""
        return float((self._drawn(residual, self.times(residual)) * residual).sum())

    def _drawn(self, x: Tensor, product: Tensor) -> Tensor:
        """X times G drawn by ``ridge``, given X G."""
        return (1 - self.ridge) * product + self.ridge * x if self.ridge else product

    def top(self, values: Tensor, kind: Pattern, kept: int) -> Tensor:
        """``values`` where the pattern keeps them, else zero."""
        if kind.free:
            return largest(values, kept)
        return values * select(values, self.layer, kind, kept).to(values.dtype)

    def step(self, linear: Tensor, s: Tensor, dual: Tensor, rho: float, kind: Pattern, kept: int) -> tuple[Tensor, Tensor]:
        """One ADMM step (ALPS, Meng et al. 2024, algorithm 1): the next S and dual variable."""
        shifted = self._solved((linear - dual).add_(s, alpha=rho), rho).add_(dual, alpha=1 / rho)
        s = self.top(shifted, kind, kept)
        return s, shifted.sub_(s).mul_(rho)

    def _solved(self, x: Tensor, rho: float) -> Tensor:
        """X (G + ρ)⁻¹."""
        return self._live.on_live(x, 1 / (1 + rho), lambda part: self._core_solved(part, rho))

    def _core_solved(self, x: Tensor, rho: float) -> Tensor:
        """The same without the inputs that occur with no other; the inverse is kept for the next choice as long as there is room."""
        if rho in self._inverses:
            return times(x, self._inverses[rho])
        if self._once:
            return _over(x, cholesky(_raised(self._live.core.clone(), rho)))
        if (len(self._inverses) + 1) * self._live.core.numel() > MOST_CACHED:  # X is scaled, which in a wide layer is far smaller than G
            values, vectors = self.eigen
            return times(times(x, vectors).div_((values.clamp_min(0) + rho).reshape(x.shape[0], 1, -1)), vectors.mT)
        self._inverses[rho] = torch.cholesky_inverse(cholesky(_raised(self._live.core.clone(), rho)))
        return times(x, self._inverses[rho])

    def refine(self, target: Tensor, s: Tensor, steps: int) -> tuple[Tensor, float]:
        """Least-squares values of S on its support, and the error tr((T − S) G (T − S)ᵀ) they reach, G drawn by ``ridge``.

        Conjugate gradients, all rows at once; ends where a step gains less than ``GAIN`` of the error.
        """
        mask, rest = (s != 0).to(s.dtype), target - s  # a product with a bool mask takes five times as long
        gradient = self._drawn(rest, self.times(rest))
        error = float((rest * gradient).sum())
        p = r = gradient * mask
        size = _dots(r, r)
        for _ in range(steps):
            ap = self._drawn(p, self.times(p)) * mask
            alpha = size / _dots(p, ap).clamp_min(1e-30)
            gain = float((alpha * size).sum())
            s, r = torch.addcmul(s, alpha, p), torch.addcmul(r, alpha, ap, value=-1)
            error -= gain
            if gain < GAIN * error:
                break
            last, size = size, _dots(r, r)
            p = torch.addcmul(r, size / last.clamp_min(1e-30), p)
        return s, error

    def fit(self, target: Tensor, linear: Tensor, kind: Pattern, kept: int, repeats: int) -> Tensor:
        """S of ``kept`` values near ``target``; never worse than the target's largest magnitudes.

        Args:
            linear: the target times G.
            repeats: steps of each penalty.
        """
        if kept == target.numel():
            return target
        if kind.drops == "outputs":  # rows do not interact: the best to keep are those that would be missed most, as they are
            missed = (self._drawn(target, linear) * target).sum(2, keepdim=True).clamp_min(0).sqrt()
            return target * select(missed.expand_as(target), self.layer, kind, kept).to(target.dtype)
        plain = self.top(target, kind, kept)
        s = self.search(linear, kind, kept, plain, [rho for rho in PENALTIES for _ in range(repeats)])
        s, error = self.refine(target, s, STEPS)
        return s if error <= self.energy(target - plain) else self.refine(target, plain, STEPS)[0]

    def search(self, linear: Tensor, kind: Pattern, kept: int, s: Tensor, penalties: Sequence[float]) -> Tensor:
        """ADMM from S on; the penalties are a fixed schedule, so that every inverse is computed once per layer.

        Ends early where a step changes less than ``SETTLED`` of a support of many atoms.
        """
        dual, support = torch.zeros_like(s), torch.zeros_like(s, dtype=torch.bool)
        many = SETTLED * kept >= kind.atom(self.layer)
        for k, rho in enumerate(penalties):
            s, dual = self.step(linear, s, dual, rho, kind, kept)
            if many and 2 * k >= len(penalties):
                before, support = support, s != 0
                if int(torch.count_nonzero(before ^ support)) < SETTLED * kept:
                    break
        return s


def _raised(matrix: Tensor, ridge: float) -> Tensor:
    """``matrix`` itself, ``ridge`` added to its diagonal."""
    matrix.diagonal(dim1=-2, dim2=-1).add_(ridge)
    return matrix


def _over(x: Tensor, factor: Tensor) -> Tensor:
    """``x`` (groups, n, columns) times the inverses of the matrices, in blocks maybe, whose lower Cholesky factors are given."""
    (groups, n, columns), k = x.shape, factor.shape[-1]
    blocks = x.reshape(groups, n, columns // k, k).transpose(1, 2).flatten(0, 1)  # (groups * blocks, n, k)
    solved: Tensor = torch.cholesky_solve(blocks.mT, factor).mT
    return solved.reshape(groups, columns // k, n, k).transpose(1, 2).flatten(-2)


def _dots(a: Tensor, b: Tensor) -> Tensor:
    """``(groups, rows, 1)``: the dot product of each row."""
    dots: Tensor = torch.linalg.vecdot(a, b)
    return dots[..., None]
