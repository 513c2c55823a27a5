"""LowRank: a format that can be fitted, composed into a weight, and contracted with an input."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from lrsearch.compress.linalg import eigh
from lrsearch.compress.matricize import Convolution, times
from lrsearch.compress.nd_convolution import NdConvolution
from lrsearch.spec.formats import FORMATS, Format, Rank
from lrsearch.spec.layer import LayerSpec

Factors = tuple[Tensor, ...]
Rule = Convolution | NdConvolution
# Sweeps over all factors, and steps of conjugate gradients on each. On three layers of a ResNet-20 for CIFAR-10 the mean error is then
# 2 % (Tucker-2), 4 % (TT) and 10 % (CP) above that of 32 sweeps, which take eight times as long; of 2 sweeps it is 4 %, 7 % and 15 %.
SWEEPS, STEPS = 4, 6


class Problem(Protocol):
    """What a fit may use of a layer: its spec, its weight ``(groups, rows, columns)``, its damped Gram matrix and a root of that."""

    layer: LayerSpec
    weight: Tensor

    @property
    def gram(self) -> Tensor:
        """``(groups, columns, columns)``, or in blocks; see :func:`lrsearch.compress.matricize.times`."""
        ...

    def times(self, x: Tensor) -> Tensor:
        """``x`` (groups, n, columns) times ``gram``, faster where some inputs are always zero."""
        ...

    @property
    def root(self) -> Tensor:
        """Shaped like ``gram``, with ``root @ root.mT == gram``."""
        ...

    @property
    def basis(self) -> Tensor:
        """:func:`leading` of the dense weight."""
        ...


class LowRank(Format):
    """A format whose weight is linear in each of its factors."""

    @abstractmethod
    def start(self, weight: Tensor, problem: Problem, rank: Rank) -> Factors:
        """Factors near ``weight`` (groups, rows, columns), to be refined."""

    @abstractmethod
    def compose(self, layer: LayerSpec, factors: Sequence[Tensor]) -> Tensor:
        """L as ``(groups, rows, columns)``; differentiable."""

    def times(self, layer: LayerSpec, factors: Sequence[Tensor], matrix: Tensor) -> Tensor:
        """L times ``matrix``, shaped like a Gram matrix."""
        return times(self.compose(layer, factors), matrix)

    @abstractmethod
    def contract(
        self, layer: LayerSpec, x: Tensor, factors: Sequence[Tensor], conv: Rule | None, bias: Tensor | None
    ) -> Tensor:
        """The layer's output for the input ``x``, with no weight rebuilt; ``conv`` is None for linear layers."""

    def fit(self, weight: Tensor, problem: Problem, rank: Rank, start: Factors | None = None) -> Factors:
        """Factors that minimise tr((W − L) C (W − L)ᵀ): alternating least squares from ``start``.

        Each factor in turn gets a few steps of conjugate gradients on its own quadratic
        problem, so the error never rises. All factors leave with equal norms.
        """
        size = float(weight.norm()) or 1.0
        weight = weight / size  # whatever its units
        factors = list(self.start(weight, problem, rank) if start is None else start)
        share = size ** (1 / len(factors))
        factors = factors if start is None else [f / share for f in factors]
        for _ in range(SWEEPS if start is None else 1):
            for j in range(len(factors)):
                others = (*factors[:j], *factors[j + 1 :])
                factors[j] = _least_squares(partial(self._with, problem.layer, others, j), factors[j], weight, problem.times)
            factors = balanced(factors)
        return tuple(f * share for f in factors)

    def _with(self, layer: LayerSpec, others: Factors, j: int, factor: Tensor) -> Tensor:
        return self.compose(layer, (*others[:j], factor, *others[j:]))


def low_rank(name: str) -> LowRank:
    """The registered format ``name``."""
    form = FORMATS[name]
    assert isinstance(form, LowRank)
    return form


def leading(weight: Tensor, problem: Problem) -> Tensor:
    """Left singular vectors of W C^½, ``(groups, rows, min(rows, columns))``, largest singular value first.

    They are the eigenvectors of W C Wᵀ, so C is never inverted.
    """
    if weight.shape[1] <= weight.shape[2]:
        return eigh(problem.times(weight) @ weight.mT)[1].flip(-1)
    half = times(weight, problem.root)
    orthonormal: Tensor = torch.linalg.qr(half @ eigh(half.mT @ half)[1].flip(-1)).Q
    return orthonormal


def balanced(factors: Sequence[Tensor]) -> list[Tensor]:
    """The same L with factors of equal norm, so that one learning rate suits all."""
    norms = torch.stack([f.norm().clamp_min(1e-20) for f in factors])
    mean = norms.log().mean().exp()
    return [f * (mean / n) for f, n in zip(factors, norms, strict=True)]


def _least_squares(composed: Callable[[Tensor], Tensor], f: Tensor, weight: Tensor, by_gram: Callable[[Tensor], Tensor]) -> Tensor:
    """Conjugate gradients on min_f tr((W − composed(f)) C (W − composed(f))ᵀ), ``composed`` linear."""
    with torch.enable_grad():
        variable = f.detach().requires_grad_()
        image = composed(variable)

    def adjoint(x: Tensor) -> Tensor:
        return torch.autograd.grad(image, variable, x, retain_graph=True)[0]

    with torch.no_grad():
        r = adjoint(by_gram(weight - image.detach()))
        p, energy = r, r.square().sum()
        for _ in range(STEPS):
            ap = adjoint(by_gram(composed(p)))
            alpha = energy / (p * ap).sum().clamp_min(1e-30)
            f, r = f + alpha * p, r - alpha * ap
            last, energy = energy, r.square().sum()
            p = r + energy / last.clamp_min(1e-30) * p
    return f
