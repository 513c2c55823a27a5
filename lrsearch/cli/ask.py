"""The command that answers what a study knows about other budgets."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lrsearch import workflows
from lrsearch.errors import ConfigError
from lrsearch.search.records import Record
from lrsearch.spec.config import StudyConfig
from lrsearch.spec.cost import LIMITS, Budget, Cost
from lrsearch.study.identity import refuse_other_study
from lrsearch.study.study_folder import StudyFolder
from lrsearch.study.what_if import Untried


def ask(config: StudyConfig, args: argparse.Namespace) -> int:
    """Show the best plan known within the budgets, and the prediction for one not tried."""
    folder = args.study_folder or Path("runs") / config.name
    refuse_other_study(StudyFolder(folder), config)
    budget = parsed(args.budget)
    answer = workflows.ask(folder, budget, queue=args.queue)
    asked = ["latency_ms" if m == "latency_ratio" else m for m, _ in budget.items()]
    shown = list(dict.fromkeys(["params", *config.objectives[1:], *asked]))
    print(f"best known:     {known(answer.best, answer.dense, shown)}")
    if answer.known is not None and answer.known != answer.best:
        print(f"before finetuning: trial {answer.known.number}, KL {answer.known.scores[0].kl:.4f}")
    print(f"not yet tried:  {untried(answer.untried, answer.dense, shown)}")
    if args.queue and answer.untried:
        print("queued: lrsearch search tries it next, also one that runs")
    return 0


def known(record: Record | None, dense: Cost, metrics: Sequence[str]) -> str:
    """One line on a finished plan."""
    if record is None:
        return "none within these budgets"
    score = record.score
    return f"trial {record.number} ({record.source}), KL {score.kl:.4f}, metric {score.metric:.2%}, {costs(record.cost, dense, metrics)}"


def untried(plan: Untried | None, dense: Cost, metrics: Sequence[str]) -> str:
    """One line on a prediction."""
    if plan is None:
        return "no other plan found"
    low, high = plan.interval
    return f"KL {plan.kl:.4f} ({low:.4f} to {high:.4f} with 95 %) before finetuning, {costs(plan.cost, dense, metrics)}"


def costs(cost: Cost, dense: Cost, metrics: Sequence[str]) -> str:
    """Costs with their ratios of dense."""
    pairs = [(m, getattr(cost, m), getattr(dense, m)) for m in metrics]
    return ", ".join(f"{m} {v:,.{3 if isinstance(v, float) else 0}f}" + (f" ({v / d:.1%})" if d else "") for m, v, d in pairs)


def parsed(pairs: Sequence[str]) -> Budget:
    """A budget of ``metric=limit`` pairs.

    Raises:
        ConfigError: one is not such a pair, or not a limit.
    """
    limits: dict[str, Any] = {}
    for pair in pairs:
        metric, _, limit = pair.partition("=")
        if metric not in LIMITS or not limit:
            raise ConfigError(
                "must be metric=limit, such as params=0.25 or 'weight_bytes=128 KiB'", value=repr(pair), place="--budget",
                remedy=f"Metrics: {', '.join(LIMITS)}.",
            )
        limits[metric] = _number(limit, metric)
    return Budget(**limits)


def _number(text: str, metric: str) -> float | str:
    try:
        value = float(text)
    except ValueError:
        if metric == "weight_bytes":
            return text
        raise ConfigError("must be a number", value=repr(text), place=f"--budget {metric}", remedy="For example 0.25.") from None
    return int(value) if value > 1 and value.is_integer() else value
