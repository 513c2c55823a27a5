"""Eigenvalues that do not give up on ill-conditioned matrices."""

import torch
from torch import Tensor

SMALLEST = 1e-6  # of the largest eigenvalue: float32, which rounds to 1.2e-7 of that, knows smaller ones to a tenth at best
TINY = 1e-20  # instead of a largest eigenvalue of 0, so that a zero matrix has a root, too


def eigh(a: Tensor) -> tuple[Tensor, Tensor]:
    """``torch.linalg.eigh``, in float64 where float32 does not converge."""
    try:
        values, vectors = torch.linalg.eigh(a)
        if bool(values.isfinite().all()):
            return values, vectors
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        pass
    values, vectors = torch.linalg.eigh(a.double())
    return values.to(a.dtype), vectors.to(a.dtype)


def cholesky(a: Tensor) -> Tensor:
    """``torch.linalg.cholesky``, the lower factor, in float64 where rounding makes ``a`` indefinite in float32."""
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(a)
    if bool(failed.any()):
        factor = torch.linalg.cholesky(a.double()).to(a.dtype)
    return factor


def roots(a: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric ``a^½`` and ``a^-½`` of positive definite ``(..., n, n)``; tiny eigenvalues are raised."""
    values, vectors = eigh(a)
    values = torch.maximum(values, SMALLEST * values[..., -1:].clamp_min(TINY)).sqrt()
    return (vectors * values[..., None, :]) @ vectors.mT, (vectors / values[..., None, :]) @ vectors.mT
