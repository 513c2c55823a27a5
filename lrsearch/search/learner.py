"""Learner: what finished trials tell → which plan the front is expected to gain most from."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np
from numpy.typing import NDArray

from lrsearch.search.acquisition import expected_gain
from lrsearch.search.candidates import Candidate, Candidates
from lrsearch.search.noise import own_luck
from lrsearch.search.surrogate import Surrogate, Traits
from lrsearch.spec.front import non_dominated
from lrsearch.spec.score import KL_FLOOR
from lrsearch.spec.space import FAMILIES

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
REFERENCE_KL = 2.0  # nats: the reference point of the hypervolume, or the largest KL seen if that is more
BEYOND, LEAST_BEYOND = 0.25, 0.01  # how far it lies beyond the highest target: a share of the targets' span, and at least of the target


@dataclass(frozen=True)
class Observation:
    """What one finished trial tells.

    Attributes:
        pick: ``(layers,)`` choice of each layer.
        log_kl: natural logarithm of the measured KL, in nats, or of ``KL_FLOOR`` if that is more.
        weights: of the knapsack, if that is where the plan came from.
        stderr: standard error of ``log_kl`` over the score images.
        losses: ``(examples,)`` KL on each of them, if it was kept: tells which part of that error all plans share.
    """

    pick: Indices
    log_kl: float
    weights: Floats | None = None
    stderr: float = 0.0
    losses: Floats | None = None


class Learner:
    """Bayesian optimisation over the solutions of the knapsack.

    Args:
        candidates: draws plans.
        costs: the metrics among the objectives.
        seen: what finished trials tell, controls too.

    Attributes:
        believed: ``(seen,)`` log KL of what was seen, on all images: what was measured, less what the score images' luck explains.
    """

    def __init__(self, candidates: Candidates, costs: Sequence[str], seen: Sequence[Observation]) -> None:
        self.candidates, decoder = candidates, candidates.parameters.decoder
        self._objectives = [candidates.metrics.index(m) for m in costs]
        self._damage = decoder.damage
        self._family = np.array([[*FAMILIES, "dense"].index(f) % len(FAMILIES) for f in decoder.families])
        low, high = candidates.lowest[self._objectives], candidates.highest[self._objectives]
        self._furthest = high + np.maximum(BEYOND * (high - low), LEAST_BEYOND * high)
        self.seen = seen
        self._picks = np.array([o.pick for o in seen], dtype=np.int64).reshape(len(seen), len(decoder.names))
        self.believed = np.array([o.log_kl for o in seen])
        told = self.believed > np.log(KL_FLOOR)  # at the floor, how far below it is not known
        self._surrogate = Surrogate(self._traits(self._picks[told]), self.believed[told], noise(list(compress(seen, told))))
        self.believed[told] = self._surrogate.expected

    def predict(self, picks: Indices) -> tuple[Floats, Floats]:
        """Mean and standard deviation of log KL of ``picks`` (n, layers), each ``(n,)``."""
        return self._surrogate.predict(self._traits(picks))

    def draw(self, rng: np.random.Generator) -> list[Candidate]:
        """Candidates, children of the front among them."""
        points = self._points(self._picks, self.believed)
        members = [o for o, keep in zip(self.seen, non_dominated(points), strict=True) if keep]
        return self.candidates.draw([Candidate(o.pick, o.weights) for o in members if o.weights is not None], rng)

    def ranked(self, found: Sequence[Candidate], running: Sequence[Indices] = ()) -> list[Candidate]:
        """``found``, the largest expected hypervolume improvement first: of log KL against the costs as ratios of dense.

        The reference is a quarter of the targets' span beyond the highest. Were it the dense model, whatever gains at the highest
        target would gain all the way up to there, and the search would look for little else.

        Args:
            running: picks that are being scored; they count as if they had come out as predicted (kriging believer, Ginsbourger
                et al. 2010).
        """
        if not found:
            return []
        picks, points = np.stack([c.pick for c in found]), self._points(self._picks, self.believed)
        if len(running):
            under_way = np.stack(running)
            points = np.r_[points, self._points(under_way, self.predict(under_way)[0])]
        reference = np.r_[max(np.log(REFERENCE_KL), points[:, 0].max(initial=-np.inf)), self._furthest]
        gain = expected_gain(*self.predict(picks), self._costs(picks), points, reference, np.log(KL_FLOOR))
        return [found[i] for i in np.argsort(-gain, kind="stable")]

    def _traits(self, picks: Indices) -> Traits:
        return Traits.of(self._damage[picks], self._family[picks])

    def _costs(self, picks: Indices) -> Floats:
        return self.candidates.total(picks)[:, self._objectives]

    def _points(self, picks: Indices, log_kl: Floats) -> Floats:
        """``(n, 1 + costs)`` objectives."""
        return np.concatenate([log_kl[:, None], self._costs(picks)], 1)


def noise(seen: Sequence[Observation]) -> Floats:
    """Covariance of the measured log KL among plans, ``(n, n)``; where the losses were not kept, as if each had images of its own."""
    covariance = np.diag([o.stderr**2 for o in seen])
    if known := {i: o.losses for i, o in enumerate(seen) if o.losses is not None}:
        covariance[np.ix_([*known], [*known])] = own_luck(np.stack([*known.values()]))
    return covariance
