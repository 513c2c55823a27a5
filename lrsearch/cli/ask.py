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
from lrsearch.spec.cost import Budget
from lrsearch.spec.metrics import limit_names, limited_metric
from lrsearch.study.identity import read_config, refuse_other_study
from lrsearch.study.study_folder import StudyFolder
from lrsearch.study.what_if import Answer
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
    for name, text in answer.lines(shown).items():
        print(plain(f"{name + ':':<15} {text}"))
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
        "divergence": u.divergence, "interval": list(u.interval), "cost": u.cost.to_dict(), "plan": u.plan.to_dict(),
        "parameters": u.parameters,
    }
    return {"dense": answer.dense.to_dict(), "best": record(answer.best), "known": record(answer.known), "untried": untried}


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
