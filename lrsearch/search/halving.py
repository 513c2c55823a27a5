"""Halving: the records of a study → the plan to finetune further."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lrsearch.search.controls import CONTROLS, ladder
from lrsearch.search.records import DENSE, Record, values
from lrsearch.search.rungs import Entry, Noise, due, groups


@dataclass(frozen=True)
class Halving:
    """Decides who goes on, by the rules of :mod:`lrsearch.search.rungs`.

    Plans compete with those whose costs are nearest, in ratio, to the same of the budgets at which the controls are evaluated.
    The dense model, and in each group the best control, always go on, so that a front shows what they come to at its own
    fidelity; all other controls compete.

    Args:
        objectives: ``divergence`` or ``metric``, then costs.
        budgets: metric → the controls' budgets, as costs of the whole model; as many for each metric.
        ends: finetune steps at the end of each rung above 0.
        reduction: one in so many goes on.
        noise: of the differences of plans, by their numbers, at a rung.
    """

    objectives: tuple[str, ...]
    budgets: Mapping[str, Sequence[float]]
    ends: tuple[int, ...]
    reduction: int
    noise: Noise

    @classmethod
    def of(
        cls, objectives: tuple[str, ...], spans: Mapping[str, tuple[float, float]], points: int, ends: tuple[int, ...],
        reduction: int, noise: Noise,
    ) -> "Halving":
        """With the controls' ``points`` budgets between the lowest and the highest of each of ``spans``."""
        return cls(objectives, {m: ladder(low, high, points) for m, (low, high) in spans.items()}, ends, reduction, noise)

    @property
    def last(self) -> int:
        """The last rung; 0 without finetuning."""
        return len(self.ends)

    def due(self, records: Sequence[Record], sent: Mapping[int, int], final: bool) -> tuple[Record, int] | None:
        """The plan to send on next and the rung to send it to, or None.

        Args:
            records: all plans; twins stay where they are.
            sent: number of a plan → the rung that it is on its way to, or failed at.
            final: no plan is still to come.
        """
        own = {r.number: r for r in records if r.twin is None}
        found = due(self._entries(list(own.values()), sent), self.last, self.reduction, final, self.noise)
        return found and (own[found[0].number], found[1])

    def _entries(self, records: Sequence[Record], sent: Mapping[int, int]) -> list[Entry]:
        if not records:
            return []
        costs = [[float(getattr(r.cost, m)) for m in self.budgets] for r in records]
        group = groups(costs, list(zip(*self.budgets.values(), strict=True)))
        points = [tuple(values(r, self.objectives, rung) for rung in range(r.rung + 1)) for r in records]
        return [
            Entry(r.number, p, max(r.rung, sent.get(r.number, 0)), g, r.source in CONTROLS, r.source == DENSE)
            for r, p, g in zip(records, points, group, strict=True)
        ]
