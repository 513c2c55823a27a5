"""Gradual sparsification: S starts with more values than its plan keeps, and loses them on a cubic schedule."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from lrsearch.compress.fit import Decomposition
from lrsearch.compress.matricize import to_matrix
from lrsearch.compress.sparsify import select
from lrsearch.spec.pattern import pattern

TIMES = 100  # how often S is cut, at most, until the schedule ends


@dataclass
class Gradual:
    """How many values each S has at which step: Zhu & Gupta 2017, eq. 1, counted from ``start`` at step 0.

    Args:
        fits: as the plan wants them.
        start: share of what S leaves out that it has at first.
        ramp: steps after which each has its plan's values; the masks change at most 100 times by then.
        scales: layer name → ``(groups, 1, columns)``, by which values are weighed; 1 for what is not there.
    """

    fits: Mapping[str, Decomposition]
    start: float
    ramp: int
    scales: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kinds = {name: pattern(fit.plan.pattern) for name, fit in self.fits.items() if fit.plan.density and not fit.mask.all()}
        self.final = {name: int(self.fits[name].mask.sum()) for name, kind in kinds.items() if kind.density is None}
        self.every = max(1, self.ramp // TIMES)

    def kept(self, step: int) -> dict[str, int]:
        """Layer name → values of S at ``step``, in whole atoms; no layer whose S keeps its mask."""
        share = self.start * (1 - min(1.0, step / self.ramp)) ** 3 if self.ramp else 0.0
        return {name: final + self._more(self.fits[name], final, share) for name, final in self.final.items()}

    def _more(self, fit: Decomposition, final: int, share: float) -> int:
        kind = pattern(fit.plan.pattern)
        atom = kind.atom(fit.layer)
        return round(share * (kind.choosable(fit.layer) * atom - final) / atom) * atom

    def due(self, step: int) -> bool:
        """Whether the masks change before the step after ``step`` finished ones."""
        return 0 < step <= self.ramp and (step == self.ramp or step % self.every == 0)

    def begin(self, weights: Mapping[str, Tensor]) -> dict[str, Decomposition]:
        """The fits to start from: beside its kept values, S has the largest of what L + S leaves of the dense weight.

        Args:
            weights: layer name → the dense weight, in its own shape.
        """
        kept = self.kept(0)
        return {n: self._denser(fit, weights[n], kept[n]) if n in kept else fit for n, fit in self.fits.items()}

    def _denser(self, fit: Decomposition, weight: Tensor, kept: int) -> Decomposition:
        rest = to_matrix(weight.detach().to(fit.sparse.dtype), fit.layer) - fit.effective()
        whole = (fit.sparse + rest).where(~fit.mask, fit.sparse)
        weighed = (whole * self.scales[fit.layer.name] if fit.layer.name in self.scales else whole).abs()
        weighed = weighed.where(~fit.mask, weighed.max() + weighed)  # what the plan keeps goes first
        mask = select(weighed, fit.layer, pattern(fit.plan.pattern), kept)
        return replace(fit, sparse=whole * mask, mask=mask)
