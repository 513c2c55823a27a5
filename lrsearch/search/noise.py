"""Noise of scores: what the choice of the examples does to the difference of two plans."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

TREND = 3  # coefficients of a parabola


def paired_errors(losses: ArrayLike) -> NDArray[np.float64]:
    """Standard error of the mean of ``losses[i] - losses[j]`` over the examples, of losses ``(n, examples)``; 0 of a single example."""
    values = np.asarray(losses, dtype=np.float64)
    examples = values.shape[1]
    if examples < 2:
        return np.zeros((len(values), len(values)))
    covariance = np.atleast_2d(np.cov(values))
    own = covariance.diagonal()
    errors: NDArray[np.float64] = np.sqrt(np.maximum(0.0, own[:, None] + own - 2 * covariance) / examples)
    return errors


def own_luck(losses: ArrayLike) -> NDArray[np.float64]:
    """Covariance of the logarithms of the mean losses, ``(n, n)``, without what the examples do to all plans of like loss.

    To first order the logarithm of a mean errs by the mean of ``losses / mean``, example by example. What is common to all plans, or
    changes with the loss as a parabola does, cannot make one plan look better than its neighbours on a front, so it is fitted and
    taken out.

    Args:
        losses: ``(n, examples)``, with means above 0.
    """
    values = np.asarray(losses, dtype=np.float64)
    means = values.mean(1, keepdims=True)
    trend = np.vander(np.log(means[:, 0]), TREND)
    relative = values / means - 1
    own = relative - trend @ np.linalg.lstsq(trend, relative, rcond=None)[0]
    covariance: NDArray[np.float64] = own @ own.T / values.shape[1] ** 2
    return covariance
