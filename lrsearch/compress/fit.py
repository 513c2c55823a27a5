"""W ≈ L + S under the statistics of the layer's inputs.

Every fit minimises tr((W − L − S) C (W − L − S)ᵀ), the expected squared error of the layer's
output, with C = E[xxᵀ] the Gram matrix of its inputs. A :class:`FitProblem` is prepared once
per layer and then serves every rank and density.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

DAMPING = 0.01
COLD_STEPS, WARM_STEPS = 60, 12
REFINE_STEPS = 12


@dataclass
class Decomposition:
    """W ≈ left @ right + sparse, in matrix form.

    Attributes:
        left: ``(rows, rank)``; rank 0 where there is no low-rank part.
        right: ``(rank, columns)``.
        sparse: ``(groups, rows / groups, columns)``, zero outside ``mask``.
        mask: bool, the kept positions of ``sparse``.
    """

    left: Tensor
    right: Tensor
    sparse: Tensor
    mask: Tensor

    def effective(self) -> Tensor:
        """L + S, ``(groups, rows / groups, columns)``."""
        return self.sparse + self.left @ self.right if self.left.shape[1] else self.sparse


class FitProblem:
    """One layer's weight and Gram matrix, scaled so that every input has unit energy.

    The Gram matrix is damped by 1 % of its mean diagonal (SparseGPT, Frantar & Alistarh
    2023), which covers singular matrices, dead inputs and few examples alike.

    Args:
        weight: ``(groups, rows, columns)``.
        gram: ``(groups, columns, columns)``.
    """

    def __init__(self, weight: Tensor, gram: Tensor) -> None:
        gram = gram.to(torch.float32)
        diagonal = gram.diagonal(dim1=1, dim2=2)
        ridge = DAMPING * diagonal.mean().clamp_min(1e-12)
        self.scale = (diagonal + ridge).sqrt()[:, None, :]
        damped = gram + ridge * torch.eye(gram.shape[1], device=gram.device)
        self.gram = damped / (self.scale.mT * self.scale)
        self.target = weight.to(torch.float32) * self.scale
        self.eigenvalues, self.eigenvectors = torch.linalg.eigh(self.gram)

    def fit(self, rank: int, kept: int, start: Decomposition | None = None) -> Decomposition:
        """L of ``rank`` plus S of ``kept`` values, by alternation (OATS, HASSLE-free).

        Args:
            rank: 0 for no low-rank part; must be 0 for grouped weights.
            kept: number of non-zeros of S; 0 for no sparse part.
            start: a neighbouring fit, whose S warm-starts this one.
        """
        w = self.target
        left, right = w.new_zeros(w.shape[1], 0), w.new_zeros(0, w.shape[2])
        s = torch.zeros_like(w) if start is None else start.sparse * self.scale
        if rank == 0:
            s = self._refine(w, self._sparse(w, kept, None if start is None else s), REFINE_STEPS)
        elif kept == 0:
            left, right = self._low_rank(w, rank)
            s = torch.zeros_like(w)
        else:
            for sweep in range(2 if start is None else 1):
                left, right = self._low_rank(w - s, rank)
                rest = w - left @ right
                warm = s if start is not None or sweep else None
                s = self._refine(rest, self._sparse(rest, kept, warm), REFINE_STEPS // 2)
            left, right = self._low_rank(w - s, rank)
            s = self._refine(w - left @ right, s, REFINE_STEPS // 2)
        return Decomposition(left, right / self.scale[0], s / self.scale, support(s, kept))

    def _low_rank(self, residual: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """Factors ``(rows, rank)``, ``(rank, columns)`` nearest to ``residual`` in the Gram norm.

        The truncated SVD of R C^½, un-whitened (SVD-LLM, Wang et al. 2024), equals U Uᵀ R with
        U the leading eigenvectors of R C Rᵀ, so C is never inverted.
        """
        r = residual[0]
        if r.shape[0] <= r.shape[1]:
            u = torch.linalg.eigh((r @ self.gram[0]) @ r.T).eigenvectors[:, -rank:]
        else:
            half = r @ (self.eigenvectors[0] * self.eigenvalues[0].clamp_min(0).sqrt())
            u = torch.linalg.qr(half @ torch.linalg.eigh(half.T @ half).eigenvectors[:, -rank:]).Q
        return u, u.T @ r

    def _sparse(self, residual: Tensor, kept: int, start: Tensor | None) -> Tensor:
        """S of ``kept`` non-zeros near ``residual`` in the Gram norm, its support found by ADMM.

        ALPS (Meng et al. 2024, algorithm 1); ρ grows the faster, the more the support moves.
        Never worse than the largest magnitudes of the scaled residual.
        """
        linear = residual @ self.gram
        s = top(residual if start is None else start, kept)
        dual = torch.zeros_like(residual)
        rho, steps = (0.1, COLD_STEPS) if start is None else (0.3, WARM_STEPS)
        support_before = s != 0
        for step in range(1, steps + 1):
            rhs = (linear - dual + rho * s) @ self.eigenvectors
            dense = (rhs / (self.eigenvalues + rho)[:, None, :]) @ self.eigenvectors.mT
            s = top(dense + dual / rho, kept)
            dual = dual + rho * (dense - s)
            if step % 3 == 0:
                moved = int((support_before ^ (s != 0)).sum()) / max(1, kept)
                if moved == 0:
                    break
                rho *= 1.3 if moved > 0.1 else 1.2 if moved > 0.005 else 1.1
                support_before = s != 0
        plain = top(residual, kept)
        return s if self._energy(residual - s) <= self._energy(residual - plain) else plain

    def _energy(self, residual: Tensor) -> float:
        return float(((residual @ self.gram) * residual).sum())

    def _refine(self, residual: Tensor, s: Tensor, steps: int) -> Tensor:
        """Least-squares values of S on its support: conjugate gradients, all rows at once."""
        mask = s != 0
        r = ((residual - s) @ self.gram) * mask
        p, energy = r, (r * r).sum(-1, keepdim=True)
        for _ in range(steps):
            ap = (p @ self.gram) * mask
            alpha = energy / (p * ap).sum(-1, keepdim=True).clamp_min(1e-30)
            s, r = s + alpha * p, r - alpha * ap
            last, energy = energy, (r * r).sum(-1, keepdim=True)
            p = r + energy / last.clamp_min(1e-30) * p
        return s


def support(values: Tensor, kept: int) -> Tensor:
    """Bool mask of the ``kept`` largest magnitudes over the whole tensor; always exactly ``kept``."""
    index = values.abs().flatten().topk(min(kept, values.numel()), sorted=False).indices
    mask = torch.zeros(values.numel(), dtype=torch.bool, device=values.device)
    return mask.index_fill(0, index, True).view_as(values)


def top(values: Tensor, kept: int) -> Tensor:
    """``values`` with all but the ``kept`` largest magnitudes set to zero."""
    return values * support(values, kept)
