"""Session: model, data and configuration → a study folder, opened, checked and ready to search."""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

import torch
from optuna.samplers import BaseSampler
from torch import nn

from lrsearch.compress.faithful import plain_layers
from lrsearch.compress.inventory import inventory
from lrsearch.compress.prepare import prepare
from lrsearch.compress.storage import Storage
from lrsearch.errors import ConfigError, DataError, StudyError
from lrsearch.latency.micro_models import architecture
from lrsearch.latency.whole_models import Menus
from lrsearch.measure.count import cost_model
from lrsearch.profile import sweep
from lrsearch.profile.statistics import SKETCHES
from lrsearch.profile.sweep import Profile
from lrsearch.search.decoder import Decoder
from lrsearch.search.proposals import Proposals
from lrsearch.spec.cache import cache_folder
from lrsearch.spec.config import StudyConfig
from lrsearch.spec.cost import Budget
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.parse import parse
from lrsearch.spec.progress import Progress
from lrsearch.spec.registry import resolve
from lrsearch.study import space_file
from lrsearch.study.evaluator import Evaluator, training_part
from lrsearch.study.latency import TABLE, open_timed
from lrsearch.study.loop import Search
from lrsearch.study.losses import kl_before_training
from lrsearch.study.study_folder import STORAGE, read_json
from lrsearch.study.trials import stored_identity
from lrsearch.study.workers import Workers
from lrsearch.task.base import Task
from lrsearch.task.choose import LOOKED_AT, settled_task
from lrsearch.task.data import Examples, ordered_print, refuse_overlap
from lrsearch.task.forward import Inputs, device_of, moved
from lrsearch.task.metrics import Metric
from lrsearch.task.sources import load_metric
from lrsearch.task.stored import task_to_dict
from lrsearch.version import __version__

log = logging.getLogger("lrsearch")


def open_search(
    model: nn.Module, calibration: Examples, scoring: Examples, train: Examples | None,
    config: StudyConfig, folder: Path, progress: Progress, workers: Workers | None = None, task: Task | type[Task] | None = None,
    sampler: BaseSampler | None = None,
) -> Search:
    """Check everything, profile the model, and open or resume the study in ``folder``.

    Args:
        workers: of the study; this process is one of them, and has the turn. By default it is alone.
        task: instead of the one that the configuration names.
        sampler: asked instead of the one that the configuration names.

    Raises:
        ConfigError: an unknown device or layer pattern, or finetuning without training data.
        ModelError: the model cannot be compressed or run on the data.
        DataError: the data do not fit the model, or overlap.
        BudgetError: no plan can meet the budgets.
        StudyError: the folder belongs to another study, or is in use.
        LatencyError: a latency table is damaged, or of another machine or model.
    """
    device = _device(config.device)
    if config.proxy.finetune.steps and train is None:
        raise ConfigError(
            "finetuning needs training data", value=f"steps {config.proxy.finetune.steps}", place="proxy.finetune.steps",
            remedy="Give data.train, or set steps to 0.",
        )
    if calibration.units < 2:
        raise DataError("needs at least 2 examples", value=calibration.units, place="data.calibration", remedy="Give more.")
    used = training_part(train, config.proxy) if train is not None and config.proxy.finetune.steps else None
    progress.stage("Checking", 1)
    prints = refuse_overlap(scoring, calibration, *([used] if used else []))
    progress.advance()

    model = prepare(model, config.space.split)
    sample = moved(calibration.sample(), device_of(model))
    found = plain_layers(model, inventory(model, sample, _inputs(calibration, device_of(model))), sample)
    for name, reason in found.refused.items():
        log.info("left dense: %s (%s)", name, reason)
    menus = config.space.menus(found.layers, found.refused)
    storage = Storage(found.layers, config.storage.values)
    costs = cost_model(model, found.layers, sample, storage.values)
    budget, timed = Budget(**config.budget), None
    if config.latency:
        timed = open_timed(model, found.layers, menus, sample, config, folder, progress)
    if timed:
        menus = timed.on_stairs(config.space, menus)
        costs = costs.timed(timed.table.dense_ms, timed.layers(menus))
    searched = {n: [p.family in ("dense", *config.search.families) for p in menu] for n, menu in menus.items()}
    decoder = Decoder(costs, {n: list(compress(menu, searched[n])) for n, menu in menus.items()}, budget.resolve(costs.dense))
    decoder.refuse_unreachable(budget, found.largest_dense())

    settled = settled_task(
        task or config.task, model, scoring, calibration, resolve, output=config.output, metric=load_metric(config.proxy.metric),
        device=device_of(model), note=progress.note,
    )
    refuse_unmeasured(config.objectives, settled, scoring)
    computes = architecture(model, sample)  # the same weights may be read by another network
    data_print = f"{ordered_print(calibration)} {config.proxy.held_out} {json.dumps(settled.identity)} {computes}"
    profile_print = sweep.fingerprint(model, menus, data_print)
    measured_by = {"latency": timed.table.identity} if timed else {}
    inputs = {"profile": profile_print, "task": settled.identity, "data": prints, "computes": computes, **measured_by}
    identity = claim(folder, config, inputs)
    if timed:
        timed.table.save(folder / TABLE)
    evaluator = Evaluator(model, calibration, scoring, used, config.proxy, settled, device, storage, progress.note)
    profile = _profiled(evaluator, found.layers, menus, cache_folder() / "profiles" / profile_print, progress)
    decoder.learn_damage({n: damage[searched[n]] for n, damage in profile.damage.items()})
    if timed:
        timed.keep_distance(decoder, folder, progress)
    space_file.save(decoder, folder)
    source = config.model.model_dump(mode="json") if config.model else None
    about = {
        "lrsearch": __version__, "model": source, "split": config.space.split,
        "dense": costs.dense.to_dict(), "baseline": evaluator.baseline.to_dict(), "task": task_to_dict(settled),
    }
    proposals = Proposals(decoder, config.objectives[1:], config.search, kl_before_training(folder, config.objectives), sampler)
    workers = workers or Workers(folder)
    search = Search(folder, config.objectives, config.search, proposals, profile, evaluator, about, progress, workers, timed)
    search.ledger.remember(identity)
    return search


def _inputs(examples: Examples, device: torch.device) -> Iterator[Inputs]:
    return (batch.inputs for batch in examples.batches(LOOKED_AT, device))


def _profiled(evaluator: Evaluator, layers: Sequence[LayerSpec], menus: Menus, folder: Path, progress: Progress) -> Profile:
    """The profile of the evaluator's model, which it holds; its statistics begin again in smaller batches where memory is exhausted."""
    def build(size: int) -> Profile:
        parts = evaluator.fit, evaluator.held_out
        sizes = size, min(size, -(-len(evaluator.held_out) // SKETCHES))
        steps = {"Statistics": sum(-(-len(part) // size) for part, size in zip(parts, sizes, strict=True)), "Fitting": len(layers)}
        return sweep.build(
            evaluator.work, layers, menus, evaluator.inputs(parts[0], sizes[0]), evaluator.inputs(parts[1], sizes[1]),
            folder, lambda title: progress.stage(title, steps[title]), progress.advance, evaluator.task,
        )

    return evaluator.batch.run(build)


def refuse_unmeasured(objectives: Sequence[str], task: Task, scoring: Examples) -> None:
    """An objective of the metric needs one.

    Raises:
        ConfigError: there is none.
    """
    if objectives[0] == "metric" and (task.metric is None or (isinstance(task.metric, Metric) and not scoring.has_labels)):
        raise ConfigError(
            "an objective of the metric needs a metric, and labels", value="none", place="objectives",
            remedy="Take divergence, give labels in data.score, or name proxy.metric.",
        )


def claim(folder: Path, config: StudyConfig, inputs: dict[str, Any]) -> dict[str, Any]:
    """Make ``folder`` this study's, or check that it is, by ``study.json`` and by what its trials say that they are of.

    What only says how long or where to run (trials, timeout, device, plugins) may change between runs, how to recover,
    and anything before the first trial.

    Returns:
        What tells the study from others: its configuration, and digests of model and data.

    Raises:
        StudyError: the folder belongs to another configuration, model or data, or nothing says to which, or its trials are lost.
    """
    identity = _identity(inputs, _settings(config))
    path, kept = folder / "study.json", stored_identity(folder)
    old = read_json(path)
    known = [each for each in (kept, old) if each and "fingerprint" in each]
    for each in known if kept is not None else ():
        if each["fingerprint"] != identity["fingerprint"] and each != _as_before(identity):
            raise StudyError(
                "the study folder must belong to this configuration", value=_difference(each, identity), place=str(folder),
                remedy="Give another --out, or restore the configuration it was made with.",
            )
    if kept is not None and not known:
        rule = "the trials must be known to be of this configuration"
        raise StudyError(rule, value="no study.json", place=str(folder), remedy="Restore study.json, or give another --out.")
    if kept is None and (folder / "front.csv").exists():
        rule = "the trials of a finished study must be there"
        raise StudyError(rule, value="none", place=str(folder / STORAGE), remedy="Restore the file, or give another --out.")
    if old.get("fingerprint") != identity["fingerprint"]:
        scratch = path.with_suffix(".writing")
        scratch.write_text(json.dumps(identity, indent=1) + "\n")
        scratch.replace(path)
    return identity


def _identity(inputs: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    whole = {"inputs": inputs, "config": settings}
    return {**whole, "fingerprint": hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]}


def _as_before(identity: dict[str, Any]) -> dict[str, Any]:
    """``identity`` as it was when studies did not keep what the model computes, but its values alone."""
    return _identity({k: v for k, v in identity["inputs"].items() if k != "computes"}, identity["config"])


def refuse_other_study(folder: Path, config: StudyConfig) -> None:
    """Check that ``folder`` has a study of this configuration; model and data are not looked at.

    Raises:
        StudyError: it has none, or another's.
    """
    old = _settings(read_config(folder))
    if old != (mine := _settings(config)):
        raise StudyError(
            "the study folder must belong to this configuration", value=_difference(old, mine), place=str(folder),
            remedy="Give the same study file and --set as to lrsearch search, and the same folder.",
        )


def read_config(folder: Path) -> StudyConfig:
    """The configuration of the study in ``folder``, without what may change between runs.

    Raises:
        StudyError: it has none.
    """
    data = read_json(folder / "study.json")
    if "config" not in data:
        raise StudyError("the folder must hold a study", value="no study.json", place=str(folder), remedy="Run lrsearch search first.")
    return parse(StudyConfig, data["config"], str(folder / "study.json"))


def _settings(config: StudyConfig) -> dict[str, Any]:
    left_out: Any = {"device": True, "recover": True, "plugins": True, "search": {"trials", "timeout"}}
    settings: dict[str, Any] = config.model_dump(mode="json", exclude=left_out)
    return settings


def _difference(old: Any, new: Any, place: str = "") -> str:
    """The first place where two JSON values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in new:
            if key != "fingerprint" and old.get(key) != new[key]:
                return _difference(old.get(key), new[key], f"{place}.{key}".strip("."))
    return f"{place} was {old!r}, is {new!r}"


def _device(name: str) -> str:
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            "torch must know and reach the device", value=f"{name} ({str(error).splitlines()[0]})", place="device",
            remedy="Use cpu, or cuda where it is available.",
        ) from None
    return name
