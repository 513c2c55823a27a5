"""The command that answers what a study knows about other budgets."""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from lrsearch.cli.named import study_folder
from lrsearch.cli.text import plain
from lrsearch.errors import ConfigError
from lrsearch.search.records import Record
from lrsearch.spec.config import StudyConfig
from lrsearch.spec.cost import Budget, Cost
from lrsearch.spec.metrics import limit_names, limited_metric
from lrsearch.spec.score import Score
from lrsearch.study.identity import read_config, refuse_other_study
from lrsearch.study.study_folder import StudyFolder
from lrsearch.study.what_if import Answer, Untried
from lrsearch.workflows import ask as workflow


def ask(config: StudyConfig | None, args: argparse.Namespace) -> int:
    """Show the best plan known within the budgets, and the prediction for one not tried."""
    folder = study_folder(config, args)
    budget, study = parsed(args.budget), StudyFolder(folder)
    if config is None:
        config = read_config(study)
    else:
        refuse_other_study(study, config)
    answer = workflow.ask(folder, budget, queue=args.queue)
    if args.json:
        print(json.dumps(_plain_data(answer), indent=1))
        return 0
    asked = [metric.name for key, _ in budget.items() if (metric := limited_metric(key))]
    shown = list(dict.fromkeys(["params", *config.objectives[1:], *asked]))
    print(plain(f"best known:     {known(answer.best, answer.dense, shown)}"))
    if answer.known is not None and answer.known != answer.best:
        print(f"before finetuning: trial {answer.known.number}, KL {answer.known.scores[0].kl:.4f}")
    print(f"not yet tried:  {untried(answer.untried, answer.dense, shown)}")
    if args.queue and answer.untried:
        print("queued: lrsearch search tries it next, also one that runs")
    return 0


def _plain_data(answer: Answer) -> dict[str, Any]:
    def record(found: Record | None) -> dict[str, Any] | None:
        if found is None:
            return None
        return {
            "trial": found.number, "source": found.source,
            "score": found.score.to_dict(), "score_before_finetune": found.scores[0].to_dict(),
            "cost": found.cost.to_dict(), "plan": found.plan.to_dict(),
        }

    u = answer.untried
    untried = u and {
        "kl": u.kl, "interval": list(u.interval), "cost": u.cost.to_dict(), "plan": u.plan.to_dict(), "parameters": u.parameters,
    }
    return {"dense": answer.dense.to_dict(), "best": record(answer.best), "known": record(answer.known), "untried": untried}


def known(record: Record | None, dense: Cost, metrics: Sequence[str]) -> str:
    """One line on a finished plan."""
    if record is None:
        return "none within these budgets"
    score = record.score
    return f"trial {record.number} ({record.source}), KL {score.kl:.4f}, {quality(score)}{costs(record.cost, dense, metrics)}"


def quality(score: Score) -> str:
    """The metric, if there is one."""
    return "" if score.metric is None else f"metric {score.metric:.2%}, "


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
        if not limit or limited_metric(metric) is None:
            raise ConfigError(
                "must be metric=limit, such as params=0.25 or 'weight_bytes=128 KiB'", value=repr(pair), place="--budget",
                remedy=f"Metrics: {', '.join(limit_names())}.",
            )
        limits[metric] = _number(limit, metric)
    return Budget(**limits)


def _number(text: str, metric: str) -> float | str:
    try:
        value = float(text)
    except ValueError:
        if (found := limited_metric(metric)) and found.unit == "bytes":
            return text
        raise ConfigError("must be a number", value=repr(text), place=f"--budget {metric}", remedy="For example 0.25.") from None
    return int(value) if value > 1 and value.is_integer() else value
