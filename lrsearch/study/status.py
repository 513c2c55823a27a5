"""What a search says of itself in one line: a plan, a finished trial, how far it has come."""

from collections.abc import Mapping, Sequence

from lrsearch.search.records import Record, front, reached
from lrsearch.spec.plan import Plan
from lrsearch.spec.score import Chance, Score
from lrsearch.spec.units import divergence_name


def shown(plan: Plan) -> str:
    """``plan`` in one line."""
    return "; ".join(f"{name} {layer}" for name, layer in plan.layers.items()) or "the dense model"


def in_one_line(number: int, record: Record, objectives: Sequence[str], unit: str = "") -> str:
    """A finished trial for the log: number, source, rung, costs, scores."""
    costs = ", ".join(f"{m} {getattr(record.cost, m):g}" for m in objectives[1:])
    metric = "" if record.score.metric is None else f", metric {record.score.metric:.4f}"
    rung = f", rung {record.rung}" if record.rung else ""
    return f"trial {number}: {record.source}{rung}, {costs}, {divergence_name(unit)} {record.scores[-1].divergence:.5f}{metric}"


def describe(
    records: Sequence[Record], objectives: Sequence[str], dense: Mapping[str, float], last: int, baseline: Score, chance: Chance | None,
    unit: str = "",
) -> str:
    """In one phrase: how many plans reached each rung, if there are several, the size of the front and its smallest usable member."""
    rungs = f"rungs {'/'.join(map(str, reached(records)))}, " if last else ""
    if not (members := front(records, objectives)):
        return rungs.rstrip(", ")
    usable, cost = [r for r in members if not r.score.at_chance(chance)], objectives[1]
    if not usable:
        return f"{rungs}front of {len(members)}, none better than chance yet"
    score, ratio = usable[-1].score, getattr(usable[-1].cost, cost) / dense[cost]
    known = score.metric is not None and baseline.metric is not None
    lost = f", {100 * (score.quality - baseline.quality):+.1f} points" if known else ""
    return f"{rungs}front of {len(members)}, to {cost} {ratio:.1%} at {divergence_name(unit)} {score.divergence:.3f}{lost}"
