"""Session: model, data and configuration → a study folder, opened, checked and ready to search."""

import hashlib
import json
import logging
from itertools import compress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lrsearch.compress.faithful import plain_layers
from lrsearch.compress.inventory import inventory
from lrsearch.compress.prepare import prepare
from lrsearch.compress.storage import Storage
from lrsearch.errors import ConfigError, DataError, StudyError
from lrsearch.measure.count import cost_model
from lrsearch.profile import sweep
from lrsearch.profile.statistics import SKETCHES
from lrsearch.search.decoder import Decoder
from lrsearch.search.proposals import Proposals
from lrsearch.spec.cache import cache_folder
from lrsearch.spec.config import StudyConfig
from lrsearch.spec.cost import Budget
from lrsearch.spec.parse import parse
from lrsearch.spec.progress import Progress
from lrsearch.study import space_file
from lrsearch.study.evaluator import Evaluator, training_part
from lrsearch.study.latency import TABLE, open_timed
from lrsearch.study.loop import Search
from lrsearch.study.losses import kl_before_training
from lrsearch.study.workers import Workers
from lrsearch.task.data import Examples, refuse_overlap
from lrsearch.task.sources import load_metric
from lrsearch.version import __version__

log = logging.getLogger("lrsearch")


def open_search(
    model: nn.Module, calibration: Examples, scoring: Examples, train: Examples | None,
    config: StudyConfig, folder: Path, progress: Progress, workers: Workers | None = None,
) -> Search:
    """Check everything, profile the model, and open or resume the study in ``folder``.

    Args:
        workers: of the study; this process is one of them, and has the turn. By default it is alone.

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
    if len(calibration) < 2:
        raise DataError("needs at least 2 examples", value=len(calibration), place="data.calibration", remedy="Give more.")
    used = training_part(train, config.proxy) if train is not None and config.proxy.finetune.steps else None
    progress.stage("Checking", 1)
    prints = refuse_overlap(scoring, calibration, *([used] if used else []))
    progress.advance()

    sample = next(calibration.batches(2))[0]
    model = prepare(model, config.space.split)
    found = plain_layers(model, inventory(model, sample, (x for x, _ in calibration.batches(64))), sample)
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

    profile_print = sweep.fingerprint(model, menus, f"{prints['calibration']} {config.proxy.held_out}")
    claim(folder, config, {"profile": profile_print, "data": prints, **({"latency": timed.table.identity} if timed else {})})
    if timed:
        timed.table.save(folder / TABLE)
    evaluator = Evaluator(model, calibration, scoring, used, config.proxy, load_metric(config.proxy.metric), device, storage)
    parts, batch = (evaluator.fit, evaluator.held_out), config.proxy.batch
    sizes = (batch, min(batch, -(-len(evaluator.held_out) // SKETCHES)))
    steps = {"Statistics": sum(-(-len(part) // size) for part, size in zip(parts, sizes, strict=True)), "Fitting": len(found.layers)}
    profile = sweep.build(
        evaluator.work, found.layers, menus, evaluator.inputs(parts[0], sizes[0]), evaluator.inputs(parts[1], sizes[1]),
        cache_folder() / "profiles" / profile_print, lambda title: progress.stage(title, steps[title]), progress.advance,
    )
    decoder.learn_damage({n: damage[searched[n]] for n, damage in profile.damage.items()})
    if timed:
        timed.keep_distance(decoder, folder, progress)
    space_file.save(decoder, folder)
    source = config.model.model_dump(mode="json") if config.model else None
    about = {
        "lrsearch": __version__, "model": source, "split": config.space.split,
        "dense": costs.dense.to_dict(), "baseline": evaluator.baseline.to_dict(),
    }
    proposals = Proposals(decoder, config.objectives[1:], config.search, kl_before_training(folder, config.objectives))
    workers = workers or Workers(folder)
    return Search(folder, config.objectives, config.search, proposals, profile, evaluator, about, progress, workers, timed)


def claim(folder: Path, config: StudyConfig, inputs: dict[str, Any]) -> None:
    """Make ``folder`` this study's, or check that it is.

    What only says how long or where to run (trials, timeout, device) may change between runs, how to recover,
    and anything before the first trial.

    Raises:
        StudyError: the folder belongs to another configuration, model or data.
    """
    identity: dict[str, Any] = {"inputs": inputs, "config": _settings(config)}
    identity["fingerprint"] = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    path = folder / "study.json"
    old = _read(path)
    if not path.exists() or ("fingerprint" in old and not (folder / "study.db").exists()):
        scratch = path.with_suffix(".writing")
        scratch.write_text(json.dumps(identity, indent=1) + "\n")
        scratch.replace(path)
        return
    if old.get("fingerprint") != identity["fingerprint"]:
        raise StudyError(
            "the study folder must belong to this configuration", value=_difference(old, identity), place=str(folder),
            remedy="Give another --out, or restore the configuration it was made with.",
        )


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
    data = _read(folder / "study.json")
    if "config" not in data:
        raise StudyError("the folder must hold a study", value="no study.json", place=str(folder), remedy="Run lrsearch search first.")
    return parse(StudyConfig, data["config"], str(folder / "study.json"))


def _settings(config: StudyConfig) -> dict[str, Any]:
    settings: dict[str, Any] = config.model_dump(mode="json", exclude={"device": True, "recover": True, "search": {"trials", "timeout"}})
    return settings


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


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
