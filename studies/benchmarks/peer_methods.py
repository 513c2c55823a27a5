"""What others make of a model within a share of its MACs or parameters; for peers.py. Each is used as its makers describe it.

Whole channels are pruned where one layer alone reads them, as ours are: inside the blocks of a residual network.
Torch-Pruning 1.6 fails on shortcuts that are padded with zeros otherwise.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from lrsearch.compress.apply import write_effective
from lrsearch.compress.fit import Decomposition, FitProblem
from lrsearch.compress.matricize import to_matrix
from lrsearch.compress.sparsify import support
from lrsearch.deploy.channel_flow import feeds
from lrsearch.deploy.deployed import deployed
from lrsearch.measure.count import cost_model, dense_macs
from lrsearch.spec.config import StudyConfig
from lrsearch.spec.cost import CostModel
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.plan import LayerPlan, Plan
from lrsearch.spec.progress import Progress
from lrsearch.study.opening import open_search
from lrsearch.task.data import Examples

PRUNING_STEPS, BATCH, FASTNAS_DIVISOR = 100, 128, 4
BISECTIONS = 40


@dataclass(frozen=True)
class Given:
    """Equal for all.

    Attributes:
        model: dense; copied, never changed.
        limit: metric, ``macs`` or ``params``, and the share of it that is left at most.
        divergence: of a model from the dense one on calibration examples that no fit reads.
    """

    model: nn.Module
    layers: tuple[LayerSpec, ...]
    calibration: Examples
    scoring: Examples
    sample: Tensor
    config: StudyConfig
    limit: tuple[str, float]
    divergence: Callable[[nn.Module], float]

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels of the calibration examples."""
        return ((batch.inputs, batch.labels) for batch in self.calibration.batches(BATCH))

    def share(self, model: nn.Module) -> float:
        """What a plain model has of the dense one's metric that is limited."""
        if self.limit[0] == "macs":
            return dense_macs(model, self.sample) / dense_macs(self.model, self.sample)
        return sum(p.numel() for p in model.parameters()) / sum(p.numel() for p in self.model.parameters())

    @property
    def costs(self) -> CostModel:
        return cost_model(self.model, self.layers, self.sample)

    def within(self, plan: Plan) -> bool:
        metric, share = self.limit
        return getattr(self.costs(plan), metric) <= share * getattr(self.costs.dense, metric)


@dataclass
class Made:
    """A plain model, and for those of its layers that are L + S their factors, which are in its weights already."""

    model: nn.Module
    fits: Mapping[str, Decomposition] = field(default_factory=dict)


def ours(given: Given) -> Made:
    """The knapsack's plan of the default space: what a study evaluates before it searches."""
    metric, share = given.limit
    with TemporaryDirectory() as folder:
        search = open_search(given.model, given.calibration, given.scoring, None, given.config, Path(folder), Progress())
        decoder = search.proposals.decoder
        plan = decoder.solve(decoder.damage, {metric: share * getattr(decoder.costs.dense, metric)})
        assert plan is not None, "the share can be met"
        return _written(given.model, search.profile.fits(plan))


def energy_svd(given: Given) -> Made:
    """Truncated SVD of every layer but the first and the last, of the ranks that keep one share of each one's energy."""
    inner = given.layers[1:-1]
    spectra = {layer.name: torch.linalg.svdvals(_matrix(given.model, layer)[0]).square().cumsum(0) for layer in inner if layer.groups == 1}

    def plan(energy: float) -> Plan:
        ranks = {n: int((s < energy * s[-1]).sum()) + 1 for n, s in spectra.items()}
        plans = {layer.name: LayerPlan("svd", (ranks[layer.name],), 0.0) for layer in inner if layer.name in ranks}
        return Plan({each.name: plans[each.name] for each in inner if each.name in plans and _saves(given, each, plans[each.name])})

    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if given.within(plan(middle)) else (low, middle)
    return _written(given.model, {name: _plain_fit(given, name, each) for name, each in plan(low).layers.items()})


def zeros(given: Given) -> Made:
    """The smallest weights of all layers are zero; of what is limited, those that are left count (Han et al. 2015)."""
    sizes = {layer.name: _matrix(given.model, layer) for layer in given.layers}
    every = torch.cat([each.abs().flatten() for each in sizes.values()]).sort().values
    layers, low, high = {layer.name: layer for layer in given.layers}, 0, len(every)
    metric, share = given.limit

    def plan(least: int) -> Plan:
        kept = {n: int((each.abs() >= every[least]).sum()) for n, each in sizes.items()}
        return Plan({n: LayerPlan(density=max(1, kept[n]) / each.numel()) for n, each in sizes.items()})

    counted = {"macs": "nonzero_macs"}.get(metric, metric)
    while high - low > 1:
        middle = (low + high) // 2
        held = getattr(given.costs(plan(middle)), counted) <= share * getattr(given.costs.dense, counted)
        low, high = (low, middle) if held else (middle, high)
    fits = {}
    for name, each in plan(high).layers.items():
        mask = support(sizes[name], each.kept(layers[name]))
        fits[name] = Decomposition(layers[name], each, (), sizes[name] * mask, mask)
    return _written(given.model, fits)


def filters(given: Given) -> Made:
    """The same share of the filters of each layer goes, those of smallest L1 norm (Li et al. 2017)."""
    import torch_pruning as tp

    return _pruned(given, tp.importance.MagnitudeImportance(p=1), False)


def torch_pruning_magnitude(given: Given) -> Made:
    """Torch-Pruning's groups, the smallest of all layers (DepGraph, Fang et al. 2023)."""
    import torch_pruning as tp

    return _pruned(given, tp.importance.GroupMagnitudeImportance(p=2), True)


def torch_pruning_taylor(given: Given) -> Made:
    """The same by first-order Taylor importance of the loss on labels."""
    import torch_pruning as tp

    return _pruned(given, tp.importance.GroupTaylorImportance(), True)


def fastnas(given: Given) -> Made:
    """ModelOpt's FastNAS, BatchNorms calibrated for each candidate; channels in multiples of four, as its own 32 leave no choice."""
    import modelopt.torch.prune as mtp

    rules = mtp.fastnas.FastNASConfig()
    for kind, own in ((k, v) for k, v in rules.model_dump().items() if isinstance(v, dict)):
        for key in own.get("*", own):
            if key.endswith("divisor"):
                rules[kind]["*"][key] = FASTNAS_DIVISOR
    images = [batch[0] for batch in given.batches()]
    metric = {"macs": "flops"}.get(given.limit[0], given.limit[0])
    with TemporaryDirectory() as folder:
        found, _ = mtp.prune(
            copy.deepcopy(given.model), [("fastnas", rules)], {metric: f"{given.limit[1]:.0%}"}, given.sample[:1],
            {
                "data_loader": images, "collect_func": lambda x: x, "score_func": lambda model: -given.divergence(model.eval()),
                "checkpoint": str(Path(folder) / "fastnas.pth"), "max_iter_data_loader": len(images),
            },
        )
    return Made(found.eval())


METHODS: dict[str, Callable[[Given], Made]] = {
    "ours": ours, "energy SVD": energy_svd, "zeros": zeros, "filters": filters, "Torch-Pruning, magnitude": torch_pruning_magnitude,
    "Torch-Pruning, Taylor": torch_pruning_taylor, "FastNAS": fastnas,
}


def _pruned(given: Given, importance: Any, everywhere: bool) -> Made:
    """Step by step, until the limit holds; ``everywhere``: whether layers compete with each other."""
    import torch_pruning as tp

    model = copy.deepcopy(given.model).eval().requires_grad_(True)
    free = {feed.producer for feed in feeds(deployed(given.model, given.sample), given.sample).values()}
    fixed = [m for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d) and n not in free]
    pruner = tp.pruner.BasePruner(
        model, given.sample[:1], importance, everywhere, pruning_ratio=0.98, iterative_steps=PRUNING_STEPS, ignored_layers=fixed,
    )
    for _ in range(PRUNING_STEPS):
        if given.share(model) <= given.limit[1]:
            return Made(model.requires_grad_(True))
        if isinstance(importance, tp.importance.GroupTaylorImportance):
            model.zero_grad()
            for images, labels in given.batches():
                nn.functional.cross_entropy(model(images), labels).backward()
        pruner.step()
    raise ValueError(f"{given.limit} cannot be met by pruning these channels")


def _saves(given: Given, layer: LayerSpec, plan: LayerPlan) -> bool:
    metric, costs = given.limit[0], given.costs
    return bool(getattr(costs.layer(layer, plan), metric) < getattr(costs.layer(layer, LayerPlan()), metric))


def _matrix(model: nn.Module, layer: LayerSpec) -> Tensor:
    return to_matrix(model.get_parameter(f"{layer.name}.weight").detach(), layer)


def _plain_fit(given: Given, name: str, plan: LayerPlan) -> Decomposition:
    layer = next(each for each in given.layers if each.name == name)
    return FitProblem(layer, _matrix(given.model, layer), torch.eye(layer.columns)[None]).fit(plan)


def _written(model: nn.Module, fits: Mapping[str, Decomposition]) -> Made:
    fits = {n: replace(fit, factors=tuple(f.detach() for f in fit.factors)) for n, fit in fits.items() if not fit.plan.untouched}
    write_effective(copied := copy.deepcopy(model), fits)
    return Made(copied, fits)
