"""From model, data and configuration to a search, in five steps: check, inventory and costs, claim the folder, profile, search."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import torch
from optuna.samplers import BaseSampler
from torch import nn

from lrsearch.compress.faithful import plain_layers
from lrsearch.compress.inventory import Inventory, inventory
from lrsearch.compress.prepare import prepared_copy
from lrsearch.compress.storage import Storage
from lrsearch.errors import ConfigError, DataError
from lrsearch.latency.micro_models import architecture
from lrsearch.latency.whole_models import Menus
from lrsearch.measure.count import cost_model
from lrsearch.profile.build import build, lasting
from lrsearch.profile.sketches import SKETCHES
from lrsearch.profile.statistics import takes_gradient
from lrsearch.profile.sweep import Profile, fingerprint
from lrsearch.search.decoder import Decoder
from lrsearch.search.proposals import Proposals
from lrsearch.spec.cache import cache_folder
from lrsearch.spec.config import Precision, StudyConfig
from lrsearch.spec.cost import Budget, CostModel
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.memory import give_back
from lrsearch.spec.plan import Plan
from lrsearch.spec.progress import Progress
from lrsearch.spec.registry import resolve
from lrsearch.study import space_file
from lrsearch.study.evaluator import Evaluator
from lrsearch.study.identity import claim
from lrsearch.study.latency import FrontTimer, Timed, front_timer, open_timed
from lrsearch.study.loop import Search
from lrsearch.study.losses import Losses
from lrsearch.study.offered import offered
from lrsearch.study.parts import training_part
from lrsearch.study.study_folder import StudyFolder
from lrsearch.study.workers import Workers
from lrsearch.task.base import Task
from lrsearch.task.choose import LOOKED_AT, settled_task
from lrsearch.task.data import Examples
from lrsearch.task.fingerprints import ordered_print, refuse_overlap
from lrsearch.task.forward import Inputs, device_of, moved
from lrsearch.task.metrics import Metric
from lrsearch.task.sources import load_metric
from lrsearch.task.stored import task_to_dict
from lrsearch.version import __version__

log = logging.getLogger("lrsearch")
SHOWN = {"Statistics": "Collecting statistics", "Fitting": "Fitting layers"}  # stages of a profile, as a user reads them
LARGE = 1 / 3  # of all fits' work: a layer that takes so much is named before


@dataclass(frozen=True)
class Sets:
    """The data of a study, checked.

    Attributes:
        train: what the finetunes use of the training data; None without finetuning.
        prints: role → fingerprint.
    """

    calibration: Examples
    scoring: Examples
    train: Examples | None
    prints: Mapping[str, str]


@dataclass(frozen=True)
class Network:
    """What a model is made of, and may become.

    Attributes:
        found: which of its layers may be compressed, and why the others stay dense.
        menus: layer name → what it may become.
        sample: a few inputs.
        storage: how values will be stored.
        costs: of every choice.
        timed: its latencies, if the study has them.
    """

    found: Inventory
    menus: Menus
    sample: Inputs
    storage: Storage
    costs: CostModel
    timed: Timed | None


def open_search(
    model: nn.Module, calibration: Examples, scoring: Examples, train: Examples | None,
    config: StudyConfig, folder: Path, progress: Progress, workers: Workers | None = None, task: Task | type[Task] | None = None,
    sampler: BaseSampler | None = None,
) -> Search:
    """Check everything, profile the model, and open or resume the study in ``folder``.

    Args:
        workers: of the study; this process is one of them. By default it is alone.
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
    study = StudyFolder(folder)
    device, sets = _device(config.device), _checked(calibration, scoring, train, config, progress)
    workers = workers or Workers(folder)
    with workers.sole("latency table") if config.latency else nullcontext():
        model, network = _inventory(model, sets, config, study, progress)
        if network.timed:
            network.timed.table.save(study.latency)
            study.share_file(study.latency)
    searched, decoder = _decoder(network, config)
    settled = _settled(model, sets, config, task, progress)
    followed = takes_gradient(model, network.found.layers, settled, network.sample)
    if not followed:
        progress.note("outputs take no gradient: damage is that of output errors")
    inputs = _inputs(model, network, sets, config, settled, followed)
    identity = workers.turn.do(lambda: claim(study, config, inputs))
    evaluator = Evaluator(
        model, sets.calibration, sets.scoring, sets.train, config.proxy, settled, device, network.storage, progress.note,
        config.deploy.precision,
    )
    del model  # the evaluator has its own: a large one leaves room for the profile
    give_back()
    profile = _profiled(evaluator, network, inputs["profile"], study, workers, progress)
    decoder.learn_damage({n: damage[searched[n]] for n, damage in profile.damage.items()})
    if network.timed:
        with workers.sole("latency table"):
            network.timed.keep_distance(decoder, study, progress)
    space_file.save(decoder, study)
    losses = Losses(study)
    proposals = Proposals(decoder, config.objectives[1:], config.search, losses.before_training(config.objectives), sampler)
    about = _about(network.costs, evaluator, config)
    dense = {**{key: about[key] for key in ("dense", "baseline", "chance")}, "unit": settled.unit}

    def begun() -> Search:
        search = Search(
            study, config.objectives, config.search, proposals, profile, evaluator, about, progress, workers, losses, network.timed,
            _front_timer(evaluator, network, config), config.name,
        )
        search.trials.remember(identity, dense, config.search.trials)
        return search

    return workers.turn.do(begun)


def _checked(calibration: Examples, scoring: Examples, train: Examples | None, config: StudyConfig, progress: Progress) -> Sets:
    """The data, which are enough and do not overlap."""
    steps = config.proxy.finetune.steps
    if steps and train is None:
        raise ConfigError(
            "finetuning needs training data", value=f"steps {steps}", place="proxy.finetune.steps",
            remedy="Give data.train, or set steps to 0.",
        )
    if calibration.units < 2:
        raise DataError("needs at least 2 examples", value=calibration.units, place="data.calibration", remedy="Give more.")
    used = training_part(train, config.proxy) if train is not None and steps else None
    progress.stage("Checking data", 1)
    for examples in (calibration, scoring):
        if examples.random:
            progress.note(f"{examples.place}: an example read again is another (random augmentation?): this study cannot be resumed")
    prints = refuse_overlap(scoring, calibration, *([used] if used else []))
    progress.advance()
    return Sets(calibration, scoring, used, prints)


def _inventory(model: nn.Module, sets: Sets, config: StudyConfig, study: StudyFolder, progress: Progress) -> tuple[nn.Module, Network]:
    """The model, prepared, not the user's own; what it is made of, what each layer may become, and what that costs."""
    model = prepared_copy(model, config.space.split)
    sample = moved(sets.calibration.sample(), device_of(model))
    others = (batch.inputs for batch in sets.calibration.batches(min(LOOKED_AT, config.proxy.batch), device_of(model)))
    found = plain_layers(model, inventory(model, sample, others), sample)
    for name, reason in found.refused.items():
        log.info("left dense: %s (%s)", name, reason)
    found, menus = offered(model, found, config.space, config.counted, sample)
    storage = Storage(found.layers, config.weights.values)
    costs, timed = cost_model(model, found.layers, sample, storage.values), None
    if config.latency:
        timed = open_timed(model, found.layers, menus, sample, config, study, progress)
        menus = timed.without_slower_ranks(config.space, menus)
        menus = timed.faster(menus) if config.counted == {"latency_ms"} else menus
        costs = costs.timed(timed.table.dense_ms, timed.layers(menus), timed.spared(menus))
    return model, Network(found, menus, sample, storage, costs, timed)


def _front_timer(evaluator: Evaluator, network: Network, config: StudyConfig) -> Callable[[Sequence[Plan]], FrontTimer] | None:
    """What measures plans of a study without latencies, if it is to."""
    if network.timed or not config.deploy.measure:
        return None
    precision: Precision = "int8" if config.deploy.precision == "int8" else "float32"
    return lambda plans: front_timer(evaluator.dense(), network.found.layers, plans, network.sample, precision)


def _decoder(network: Network, config: StudyConfig) -> tuple[dict[str, list[bool]], Decoder]:
    """Which choices of each layer are searched, and what turns them into plans within the budgets."""
    budget, families = Budget(**config.budget), ("dense", *config.search.families)
    searched = {name: [plan.family in families for plan in menu] for name, menu in network.menus.items()}
    choices = {name: list(compress(menu, searched[name])) for name, menu in network.menus.items()}
    decoder = Decoder(network.costs, choices, budget.resolve(network.costs.dense))
    decoder.refuse_unreachable(budget, network.found.largest_dense())
    return searched, decoder


def _settled(model: nn.Module, sets: Sets, config: StudyConfig, task: Task | type[Task] | None, progress: Progress) -> Task:
    """The task, which can say what the objectives ask."""
    settled = settled_task(
        task or config.task, model, sets.scoring, sets.calibration, resolve, output=config.output, metric=load_metric(config.proxy.metric),
        device=device_of(model), note=progress.note,
    )
    refuse_unmeasured(config.objectives, settled, sets.scoring)
    return settled


def _inputs(model: nn.Module, network: Network, sets: Sets, config: StudyConfig, settled: Task, followed: bool) -> dict[str, Any]:
    """Digests of all that the study is of; ``computes`` as the same weights may be read by another network, ``followed`` as their
    gradients may be out of reach."""
    computes = architecture(model, network.sample)
    data_print = f"{ordered_print(sets.calibration)} {config.proxy.held_out} {json.dumps(settled.identity)} {computes}"
    profile = fingerprint(model, network.menus, data_print if followed else f"{data_print} no gradient")
    measured_by = {"latency": network.timed.table.identity} if network.timed else {}
    return {"computes": computes, "data": sets.prints, "task": settled.identity, "profile": profile, **measured_by}


def _about(costs: CostModel, evaluator: Evaluator, config: StudyConfig) -> dict[str, Any]:
    """What is kept in every saved model's plan."""
    source = config.model.model_dump(mode="json") if config.model else None
    return {
        "lrsearch": __version__, "model": source, "split": config.space.split,
        "dense": costs.dense.to_dict(), "baseline": evaluator.baseline.to_dict(), "task": task_to_dict(evaluator.task),
        "chance": asdict(evaluator.chance) if evaluator.chance else None,
    }


def _profiled(
    evaluator: Evaluator, network: Network, name: str, study: StudyFolder, workers: Workers, progress: Progress,
) -> Profile:
    """The profile of the evaluator's model, which it holds; its statistics begin again in smaller batches where memory is exhausted.

    Workers that share the study's artifacts make parts of it side by side, and have the others from there.
    """
    layers, menus, folder = network.found.layers, network.menus, cache_folder() / "profiles" / name
    blobs = study.constant_blobs(folder, f"profile-{name}")
    claims = workers if study.shares and workers.far else None

    def built(size: int) -> Profile:
        parts = evaluator.fit, evaluator.held_out
        sizes = size, min(size, -(-len(evaluator.held_out) // SKETCHES))
        fit, check = (-(-len(part) // size) for part, size in zip(parts, sizes, strict=True))
        steps = {"Statistics": fit + check, "Fitting": len(layers), "Sketches": check}
        return build(
            evaluator.work, layers, menus, evaluator.inputs(parts[0], sizes[0]), evaluator.inputs(parts[1], sizes[1]),
            folder, lambda stage, done: progress.stage(SHOWN[stage], steps[stage], done), progress.advance, evaluator.task,
            progress.expect, progress.note, blobs, claims, steps["Sketches"],
        )

    if told := dominating(layers, menus):
        progress.note(told)
    return evaluator.batch.run(built)


def dominating(layers: Sequence[LayerSpec], menus: Menus) -> str:
    """Which layer takes most of the fits' work, where that is a third or more of many layers'; else nothing."""
    work = {layer.name: lasting(layer, len(menus[layer.name])) for layer in layers}
    name, most = max(work.items(), key=lambda pair: pair[1])
    share = most / (sum(work.values()) or 1)
    told = f"fitting layer {name} takes about {share:.0%} of the time of fitting {len(work)} layers"
    return told if share >= LARGE and len(work) > 2 else ""


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


def _device(name: str) -> str:
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            "torch must know and reach the device", value=f"{name} ({str(error).splitlines()[0]})", place="device",
            remedy="Use cpu, or cuda where it is available.",
        ) from None
    return name
