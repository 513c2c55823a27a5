"""Eigenvalues that do not give up on ill-conditioned matrices."""

import torch
from torch import Tensor


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
    values = torch.maximum(values, 1e-6 * values[..., -1:].clamp_min(1e-20)).sqrt()
    return (vectors * values[..., None, :]) @ vectors.mT, (vectors / values[..., None, :]) @ vectors.mT
