"""What a study is of, in a few lines."""

from collections.abc import Mapping
from datetime import datetime

from lrsearch.report.summary import counted, percent, sized
from lrsearch.spec.config import ModelConfig, SourceConfig, StudyConfig
from lrsearch.spec.cost import Cost
from lrsearch.spec.metrics import limited_metric
from lrsearch.spec.score import Score

_VERSIONS = ("lrsearch", "torch", "optuna")


def header(
    config: StudyConfig, dense: Cost, baseline: Score, made: Mapping[str, str], finished: Mapping[int, datetime],
) -> list[tuple[str, str]]:
    """(what, text) of model, data, budget, device, versions, seed, date and duration.

    Args:
        made: as :func:`lrsearch.study.identity.read_made` reads it.
        finished: trial → when it was done.
    """
    metric = f", metric {percent(baseline.metric)}" if baseline.metric is not None else ""
    latency = f", {dense.latency_ms:.3f} ms" if dense.latency_ms else ""
    size = f"{counted(dense.params)} parameters, {counted(dense.macs)} MACs, {sized(dense.weight_bytes)}{latency}{metric}"
    data = [f"{role}: {_source(s)}" for role in ("calibration", "train", "score") if (s := getattr(config.data, role, None))]
    tune = config.proxy.finetune
    took = (max(finished.values()) - min(finished.values())).total_seconds() if finished else 0
    runs = config.latency
    timed = f"; latency on {runs.backend}, {runs.threads} thread{'s' * (runs.threads != 1)}, batch {runs.batch}" if runs else ""
    rows = [
        ("model", f"{_model(config.model)}: {size}"), ("data", "; ".join(data) or "given from Python"),
        ("budget", ", ".join(f"{key} ≤ {_limit(key, v)}" for key, v in config.budget.items()) or "none: the whole front"),
        ("objectives", ", ".join(config.objectives)), ("weights", config.weights.values),
        ("search", f"{config.search.sampler}, seed {config.search.seed}; {len(finished)} plans, those of the controls among them"),
        ("finetune", f"{tune.steps} steps, {tune.rungs} rung{'s' * (tune.rungs != 1)}" if tune.steps else "none"),
        ("device", f"{config.device}, {made.get('cpu', 'unknown')}{timed}"),
        ("versions", ", ".join(f"{name} {made[name]}" for name in _VERSIONS if name in made) or "not kept"),
        ("began", f"{_date(made.get('date', ''))}; trials took {took / 60:.1f} minutes"),
    ]
    return [(what, text) for what, text in rows if text]


def _date(text: str) -> str:
    """``2026-01-31 12:00 UTC`` of a date as ISO 8601 has it."""
    try:
        return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M %Z}".strip()
    except ValueError:
        return "not kept"


def _model(model: ModelConfig | None) -> str:
    if model is None:
        return "given from Python"
    return ", ".join(filter(None, (model.timm or model.call, "pretrained" * model.pretrained, str(model.checkpoint or ""))))


def _source(source: SourceConfig) -> str:
    part = f" [{source.slice[0]}, {source.slice[1]})" if source.slice else ""
    more = f" {', '.join(f'{k}={v}' for k, v in source.args.items())}" if source.args else ""
    return f"{source.folder or source.call}{more}{part}"


def _limit(key: str, limit: float) -> str:
    metric = limited_metric(key)
    if metric is None or metric.ratio_key == key or (not metric.ratio_key and limit <= 1):
        return f"{limit:.1%} of dense"
    return sized(limit) if metric.unit == "bytes" else f"{limit:g} {metric.unit}"
