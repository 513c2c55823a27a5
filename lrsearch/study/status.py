"""What a search says of itself in one line: a plan, a finished trial, how far it has come."""

from collections.abc import Mapping, Sequence

from lrsearch.search.records import Record, front, reached
from lrsearch.spec.plan import Plan
from lrsearch.spec.score import Chance, Score
from lrsearch.spec.units import divergence_name

TOLERABLE = 0.02  # of the metric: the most that the rows of the final table may lose


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
    """In one phrase: how many plans were finetuned, if any are, the size of the front, and a member that one would use: the smallest within
    ``TOLERABLE`` of the dense model's metric; where there is none, the best; without a metric, the smallest."""
    plans, *finetuned = reached(records) or [0]
    through = f", {sum(finetuned[last - 1 :])} of them to the last rung" if finetuned and last > 1 else ""
    rungs = f"{plans} plans, {finetuned[0] if finetuned else 'none'} finetuned{through}, " if last else ""
    if not (members := front(records, objectives)):
        return rungs.rstrip(", ")
    usable, cost = [r for r in members if not r.score.at_chance(chance)], objectives[1]
    if not usable:
        return f"{rungs}front of {len(members)}, none better than chance yet"
    what, member, lost = "smallest", usable[-1], ""
    if usable[0].score.metric is not None and baseline.metric is not None:
        within = [r for r in usable if r.score.quality >= baseline.quality - TOLERABLE]
        what = f"smallest within {100 * TOLERABLE:g} points" if within else "best"
        member = within[-1] if within else max(usable, key=lambda r: r.score.quality)
        lost = f", {100 * (member.score.quality - baseline.quality):+.1f} points"
    ratio, far = getattr(member.cost, cost) / dense[cost], f"{divergence_name(unit)} {member.score.divergence:.3f}"
    return f"{rungs}front of {len(members)}; {what}: {cost} {ratio:.1%}, {far}{lost}"
