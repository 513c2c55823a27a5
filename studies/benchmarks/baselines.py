"""Published ways to make a weight sparse, low-rank or both, as their papers state them; for layer_errors.py.

Each takes the weight ``(groups, rows, columns)``, the Gram matrix of the inputs ``(groups, columns, columns)``, a
rank and a number of values, and returns L + S: L of that rank, S of that many values, exactly.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lrsearch.compress.sparsify import support

ITERATIONS, BLOCK, DAMPING = 80, 128, 0.01
Method = Callable[[Tensor, Tensor, int, int], Tensor]


def by_row(scores: Tensor, kept: int) -> Tensor:
    """Mask of the largest magnitudes, equally many in each row; what cannot be shared out goes to the largest left."""
    scores, each = scores.abs(), kept // (scores.shape[0] * scores.shape[1])
    best = scores.topk(min(each + 1, scores.shape[2]), -1)
    first = torch.zeros_like(scores).scatter_(-1, best.indices[..., each:], best.values[..., each:])
    return support(first.scatter_(-1, best.indices[..., :each], torch.inf), kept)


def input_norms(gram: Tensor) -> Tensor:
    """√diag(C), ``(groups, 1, columns)``."""
    return gram.diagonal(dim1=1, dim2=2).sqrt()[:, None, :]


def magnitude(weight: Tensor, _: Tensor, __: int, kept: int) -> Tensor:
    return weight * support(weight, kept)


def wanda(weight: Tensor, gram: Tensor, _: int, kept: int) -> Tensor:
    """|W| · ‖X‖₂, compared within each output (arXiv 2306.11695)."""
    return weight * by_row(weight * input_norms(gram), kept)


def wanda_layer(weight: Tensor, gram: Tensor, _: int, kept: int) -> Tensor:
    """The same, compared within the layer (the paper's table 7)."""
    return weight * support(weight * input_norms(gram), kept)


def sparsegpt(weight: Tensor, gram: Tensor, _: int, kept: int) -> Tensor:
    """OBS updates column by column, the mask chosen anew for each block of columns (arXiv 2301.00774, algorithm 1)."""
    w, hessian = weight.double().clone(), gram.double().clone()
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    dead = diagonal == 0
    diagonal[dead] = 1
    w.masked_fill_(dead[:, None, :], 0)
    diagonal += DAMPING * diagonal.mean(-1, keepdim=True)
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)
    share, columns = kept / w.numel(), w.shape[2]
    for i in range(0, columns, BLOCK):
        j = min(i + BLOCK, columns)
        block, own = w[:, :, i:j].clone(), inverse[:, i:j, i:j]
        through = w[:, :, :j].numel()
        count = round(share * through) - round(share * (through - block.numel()))
        mask = support(block / own.diagonal(dim1=1, dim2=2)[:, None, :], count)
        errors = torch.zeros_like(block)
        for k in range(j - i):
            errors[:, :, k] = block[:, :, k] * ~mask[:, :, k] / own[:, k, k, None]
            block[:, :, k:] -= errors[:, :, k, None] * own[:, k, None, k:]
        w[:, :, i:j] = block * mask
        w[:, :, j:] -= errors @ inverse[:, i:j, j:]
    return w.float()


def alternating(weight: Tensor, scale: Tensor, rank: int, kept: int, mask: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Truncated SVD of W D − S, then the largest values of W D − L, and again; unscaled at the end."""
    target = weight.double() * scale
    low_rank, sparse = torch.zeros_like(target), torch.zeros_like(target)
    for _ in range(ITERATIONS if rank and kept else 1):
        low_rank = truncated(target - sparse, rank)
        sparse = (target - low_rank) * mask(target - low_rank, kept)
    return ((low_rank + sparse) / torch.where(scale == 0, torch.inf, scale)).float()


def truncated(a: Tensor, rank: int) -> Tensor:
    """The truncated SVD of ``a`` (groups, rows, columns), by the eigenvectors of its smaller Gram matrix in float64."""
    if a.shape[1] > a.shape[2]:
        return truncated(a.mT, rank).mT
    u = torch.linalg.eigh(a @ a.mT)[1][:, :, a.shape[1] - rank :]
    return u @ (u.mT @ a)


def plain(weight: Tensor, gram: Tensor, rank: int, kept: int) -> Tensor:
    """Nothing known of the inputs: the alternation without a scale; for L alone, the truncated SVD of W."""
    return alternating(weight, torch.ones_like(input_norms(gram)), rank, kept, support)


def oats(weight: Tensor, gram: Tensor, rank: int, kept: int) -> Tensor:
    """W scaled by √diag(XᵀX), S chosen row by row, as in the authors' code (arXiv 2409.13652)."""
    return alternating(weight, input_norms(gram), rank, kept, by_row)


def oats_layer(weight: Tensor, gram: Tensor, rank: int, kept: int) -> Tensor:
    """The same, S chosen over the whole layer."""
    return alternating(weight, input_norms(gram), rank, kept, support)


BASELINES: dict[str, dict[str, Method]] = {
    "sparse": {"magnitude": magnitude, "wanda": wanda, "wanda-layer": wanda_layer, "sparsegpt": sparsegpt},
    "low-rank": {"plain": plain, "oats": oats},
    "low-rank+sparse": {"plain": plain, "oats": oats, "oats-layer": oats_layer},
}
