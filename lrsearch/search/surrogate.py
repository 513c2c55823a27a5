"""A Gaussian process that predicts the KL of a plan from the damage that the profile predicts for its layers."""

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky

from lrsearch.spec.space import FAMILIES

Floats = NDArray[np.float64]
LEAST_VARIANCE = 1e-12  # keeps logarithms and roots finite
INTERCEPT, SLOPE = 0.5, 0.3  # standard deviations, before any plan is seen, of the line that corrects the profile's log damage
REACH = 1.0  # difference in log damage over which plans tell of each other
OWN = 0.03  # standard deviation in log KL of what each plan adds of its own
GRID = tuple(product((0.05, 0.1, 0.2, 0.4), (0.05, 0.1, 0.2)))  # ``a`` in log KL and ``l`` in squared Hellinger distance


@dataclass(frozen=True)
class Traits:
    """What the surrogate sees of plans.

    Attributes:
        total: ``(plans,)`` natural logarithm of the summed damage.
        spread: ``(plans, families * layers)`` square roots of the share of the damage that each layer does, in the family it is of.
    """

    total: Floats
    spread: Floats

    @classmethod
    def of(cls, damage: Floats, family: NDArray[np.int64]) -> "Traits":
        """Traits of plans, from the damage and the family (an index into ``FAMILIES``) of each layer, both ``(plans, layers)``."""
        total = damage.sum(1, keepdims=True) + LEAST_VARIANCE
        members = family[:, None] == np.arange(len(FAMILIES))[:, None]
        spread = np.sqrt(damage / total)[:, None] * members
        return cls(np.log(total[:, 0]), spread.reshape(len(damage), len(FAMILIES) * damage.shape[1]))


class Surrogate:
    """log KL as a Gaussian process (Rasmussen and Williams 2006, ch. 2) over plans.

    The mean is the profile's own prediction, the log of the summed damage. What is off is learned: a line over that sum, and a
    smooth function of which layers do the damage and how, by the kernel ``a² exp(-H² / l) exp(-(s - s')² / 2)`` with H the Hellinger
    distance of the two plans' shares and s their log sums. ``a`` and ``l`` are those of the greatest likelihood on a grid, as few
    observations cannot tell more. To that each plan adds something of its own, of standard deviation ``OWN``, and each measured KL
    its noise.

    Args:
        seen: traits of ``n`` plans, n > 0.
        log_kl: ``(n,)`` natural logarithms of their measured KL.
        noise: ``(n, n)`` covariance of what was measured; none if not given.

    Attributes:
        expected: ``(n,)`` what their log KL is expected to be on all images, those measured among them.
    """

    def __init__(self, seen: Traits, log_kl: Floats, noise: Floats | None = None) -> None:
        self._seen, residual = seen, log_kl - seen.total
        self._noise = np.zeros((len(residual), len(residual))) if noise is None else noise
        fits = [self._fit(residual, *setting) for setting in GRID]
        best = max(range(len(fits)), key=lambda i: fits[i][0])
        self._scale, self._length = GRID[best]
        _, self._root, self._weights = fits[best]
        self.expected: Floats = log_kl - self._noise @ self._weights

    def _fit(self, residual: Floats, scale: float, length: float) -> tuple[float, Floats, Floats]:
        """Log likelihood, Cholesky factor and weights."""
        own = OWN**2 * np.eye(len(residual))
        root = cholesky(kernel(self._seen, self._seen, scale, length) + own + self._noise, lower=True)
        weights: Floats = cho_solve((root, True), residual)
        return float(-residual @ weights / 2 - np.log(np.diag(root)).sum()), root, weights

    def predict(self, plans: Traits) -> tuple[Floats, Floats]:
        """Mean and standard deviation of log KL, each ``(plans,)``."""
        cross = kernel(plans, self._seen, self._scale, self._length)
        prior = INTERCEPT**2 + (SLOPE * plans.total) ** 2 + self._scale**2
        known = np.einsum("ij,ji->i", cross, cho_solve((self._root, True), cross.T))
        return plans.total + cross @ self._weights, np.sqrt(np.maximum(prior - known, LEAST_VARIANCE))


def kernel(a: Traits, b: Traits, scale: float, length: float) -> Floats:
    """Covariance of what the profile's prediction is off by, ``(plans of a, plans of b)``."""
    hellinger = 1 - a.spread @ b.spread.T
    apart = (a.total[:, None] - b.total) / REACH
    line = INTERCEPT**2 + SLOPE**2 * np.outer(a.total, b.total)
    covariance: Floats = line + scale**2 * np.exp(-hellinger / length - apart**2 / 2)
    return covariance
