"""Survey: everything of one model that is to be timed, timed here or, through files, elsewhere."""

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from lrsearch.compress.apply import compress
from lrsearch.compress.matricize import Conv
from lrsearch.compress.modules import CompressedLayer
from lrsearch.deploy.channel_flow import Feed, drops_columns
from lrsearch.deploy.deployed import deployed
from lrsearch.deploy.onnx_graph import NeedsExporter, onnx_model
from lrsearch.deploy.onnx_template import Template
from lrsearch.deploy.quantize import quantised_to_time
from lrsearch.errors import ConfigError
from lrsearch.latency import runner
from lrsearch.latency.backends import BACKENDS, OnnxBackend, backend
from lrsearch.latency.chains import FedJob, chain_under, fed_layers, fed_signature
from lrsearch.latency.micro_models import Calls, Job, alone, architecture, calls, jobs, randomised, shape_of
from lrsearch.latency.runner import Runner, Timing, interleaved, surroundings
from lrsearch.latency.table import Conditions, LatencyTable
from lrsearch.spec.config import Precision
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.plan import LayerPlan, Plan
from lrsearch.task.forward import Inputs, batches_of, examples_in

INT8: Precision = "int8"


@dataclass(frozen=True)
class Survey:
    """What is to be timed of one model.

    Attributes:
        model: the dense model.
        layers: its compressible layers.
        sample: a batch of the size that is timed.
        calls: signatures of every layer's calls, or, where ``joined``, that of a layer with what feeds it.
        jobs: the distinct layers, alone or with what feeds them, in every form.
        architecture: a digest of what the model computes.
        fed: layers whose dropped columns take with them what feeds them.
        joined: whether these are timed with what feeds them, which then has no choices of its own. Else all have choices, and
            whole models that drop columns take less than the layers alone say.
    """

    model: nn.Module
    layers: tuple[LayerSpec, ...]
    sample: Inputs
    calls: Calls
    jobs: tuple[Job, ...]
    architecture: str
    fed: Mapping[str, Feed]
    joined: bool

    @classmethod
    def of(
        cls, model: nn.Module, layers: Sequence[LayerSpec], menus: Mapping[str, Sequence[LayerPlan]], sample: Inputs, batch: int,
        joined: bool = True,
    ) -> "Survey":
        """Args: ``sample`` is a batch that the model accepts, of any size; ``batch`` the size to time."""
        sample = batches_of(sample, batch)
        called = calls(model, [layer.name for layer in layers], sample)
        dense = deployed(model, sample)
        fed = fed_layers(dense, menus, sample)
        chains = {name: _chain(dense, name, fed) for name in fed} if joined else {}
        apart = jobs(model, [layer for layer in layers if layer.name not in chains], _led(menus, fed if joined else {}), called)
        called |= {name: (fed_signature(dense, name, fed[name]),) for name in chains}
        together = [
            FedJob(j.signature, j.layer, chains[j.layer.name][-1], j.choice, chains[j.layer.name], fed[j.layer.name].shapes[0])
            for j in jobs(model, [layer for layer in layers if layer.name in chains], menus, called)
        ]
        return cls(model, tuple(layers), sample, called, (*apart, *together), architecture(model, sample), fed, joined)

    def led(self, menus: Mapping[str, Sequence[LayerPlan]]) -> dict[str, list[LayerPlan]]:
        """``menus`` without those choices that layers leave to the one they feed, where they are timed with it."""
        return _led(menus, self.fed if self.joined else {})

    def merged(self, table: LatencyTable, plan: Plan) -> list[str]:
        """Names of the layers that run fastest as one dense layer; where timed alone, columns that spare what feeds them are not."""
        spare = {name for name in self.fed if drops_columns(plan[name])} if not self.joined else set()
        return [name for name in table.merged(self.calls, plan) if name not in spare]

    def conditions(self, name: str, threads: int, cpu: str | None = None, precision: Precision = "float32") -> Conditions:
        """Those of a table measured here and now; if another machine's ``cpu`` is named, of any version there.

        Args:
            precision: that is deployed; but for int8 all run in the type of the weights.

        Raises:
            ConfigError: no such backend, or it is not installed, or it does not read ONNX, which int8 is written in.
        """
        where = {"cpu": cpu, "version": ""} if cpu else {"version": backend(name).version(), **surroundings()}
        converted = isinstance(BACKENDS[name], OnnxBackend) and self._dtype in (torch.bfloat16, torch.float64)
        dtype = "float32" if converted else str(self._dtype)
        if precision == INT8:
            refuse_int8(name)
            dtype = INT8
        return Conditions(name, threads=threads, batch=examples_in(self.sample), dtype=dtype.removeprefix("torch."), **where)

    @property
    def _dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(p.dtype for p in self.model.parameters() if p.is_floating_point())

    def fingerprint(self, conditions: Conditions) -> str:
        """Names a table by what goes into it, but its load and date."""
        made = {k: v for k, v in asdict(conditions).items() if k not in ("load", "date")}
        what = sorted((job.signature, str(job.choice)) for job in self.jobs)
        return hashlib.sha256(json.dumps([made, self.architecture, what], sort_keys=True).encode()).hexdigest()[:16]

    def covers(self, table: LatencyTable, conditions: Conditions, anywhere: bool = False) -> bool:
        """Whether ``table`` was measured under ``conditions``, load and date aside, and has all that is to be timed.

        Args:
            anywhere: on whichever machine.
        """
        mine = replace(table.conditions, load=conditions.load, date=conditions.date)
        if anywhere:
            mine = replace(mine, cpu=conditions.cpu, version=conditions.version)
        entries = all(str(job.choice) in table.entries.get(job.signature, {}) for job in self.jobs)
        return mine == conditions and table.architecture == self.architecture and entries

    def models(self) -> Iterator[tuple[nn.Module, Inputs]]:
        """The whole dense model, deployed, then every job, each with its input."""
        yield deployed(self.model, self.sample), self.sample
        for job in self.jobs:
            yield job.module()

    def onnx(self, plan: Plan, merged: Collection[str]) -> bytes:
        """The model that :meth:`planned` gives as ONNX, in a fraction of the time where the graph allows it."""
        touched = [n for n, p in plan.layers.items() if n not in merged and not p.executed.untouched]
        specs = {layer.name: layer for layer in self.layers}
        # An exchange leaves out what feeds dropped columns, but not where that is compressed too.
        feeding = {feeder for n in touched if n in self.fed and drops_columns(plan[n]) for feeder in self._feeders(n)}
        alike = self.joined or not feeding & set(touched)
        if alike and all(len(self.calls[name]) == 1 for name in touched):
            with suppress(KeyError, NeedsExporter):
                return self._template.exchanged({k: v for name in touched for k, v in self._pieces(specs[name], plan[name]).items()})
        return onnx_model(self.planned(plan, merged), self.sample)

    def _feeders(self, name: str) -> tuple[str, ...]:
        return self.fed[name].producer, *self.fed[name].between

    def _pieces(self, layer: LayerSpec, choice: LayerPlan) -> dict[str, tuple[nn.Module, Tensor]]:
        """Name → module, random, and an input for it: the layer under ``choice``, and what that leaves of what feeds it."""
        name, dtype = layer.name, self._dtype
        if name not in self.fed or not drops_columns(choice):
            shape = shape_of(self.calls[name][0])
            return {name: (alone(self._dense.get_submodule(name), layer, choice), torch.zeros(shape, dtype=dtype))}
        feed, pieces = self.fed[name], dict[str, tuple[nn.Module, Tensor]]()
        chain = chain_under(_chain(self._dense, name, self.fed), layer, choice)
        for each, module, shape in zip((feed.producer, *feed.between, name), chain, feed.shapes, strict=True):
            if isinstance(module, nn.Linear):
                pieces[each] = module, torch.zeros(*shape[:-1], module.in_features, dtype=dtype)
            elif isinstance(module, Conv):
                pieces[each] = module, torch.zeros(shape[0], module.in_channels, *shape[2:], dtype=dtype)
        return pieces

    @cached_property
    def _dense(self) -> nn.Module:
        return deployed(self.model, self.sample)

    @cached_property
    def _template(self) -> Template:
        return Template(self._dense, self.sample)

    def planned(self, plan: Plan, merged: Collection[str]) -> nn.Module:
        """The whole model under ``plan``, deployed, its factors random; see :func:`deployed`."""
        model = compress(self.model, self.layers, plan)
        for layer in model.modules():
            if isinstance(layer, CompressedLayer):
                randomised(layer)
        return deployed(model, self.sample, merged)

    def runners(self, plan: Plan, merged: Collection[str], conditions: Conditions) -> list[Runner]:
        """Calls of the whole model under ``plan``; see :meth:`planned`."""
        runtime = backend(conditions.backend)
        if isinstance(runtime, OnnxBackend):
            return runtime.load(in_precision(self.onnx(plan, merged), conditions.dtype), self.sample, conditions.threads)
        return runtime.build(self.planned(plan, merged), self.sample, conditions.threads)

    def dense_in_each(self, conditions: Conditions, stage: Callable[[str, int], None], advance: Callable[[], None]) -> dict[str, Timing]:
        """The dense model in float32 and int8, beside each other; nothing where the backend does not read ONNX. See :meth:`measure`."""
        runtime = backend(conditions.backend)
        if not isinstance(runtime, OnnxBackend):
            return {}
        stage("Building models", 2)
        whole = self.onnx(Plan(), ())
        models = (runtime.load(model, self.sample, conditions.threads) for model in (whole, quantised_to_time(whole)))
        times = timed(models, conditions.threads, stage, advance)
        return dict(zip(("float32", "int8"), times, strict=True))

    def measure(self, conditions: Conditions, stage: Callable[[str, int], None], advance: Callable[[], None]) -> LatencyTable:
        """Time everything in this process.

        Args:
            conditions: from :meth:`conditions`.
            stage: told when ``"Building models"`` and ``"Timing models"`` begin, and of how many steps they are.
            advance: called after each of them.
        """
        stage("Building models", len(self.jobs) + 1)
        models = (built(module, x, conditions) for module, x in self.models())
        return self.table(conditions, timed(models, conditions.threads, stage, advance, runner.ROUNDS))

    def table(self, conditions: Conditions, times: Sequence[Timing]) -> LatencyTable:
        """The table of the times of :meth:`models`."""
        entries: dict[str, dict[str, Timing]] = {}
        for job, timing in zip(self.jobs, times[1:], strict=True):
            entries.setdefault(job.signature, {})[str(job.choice)] = timing
        return LatencyTable(conditions, self.architecture, times[0], entries)


def built(module: nn.Module, x: Inputs, conditions: Conditions) -> list[Runner]:
    """Calls of ``module``, deployed, under ``conditions``."""
    runtime = backend(conditions.backend)
    if conditions.dtype == INT8 and isinstance(runtime, OnnxBackend):
        return runtime.load(quantised_to_time(runtime.model(module, x)), x, conditions.threads)
    return runtime.build(module, x, conditions.threads)


def in_precision(model: bytes, dtype: str) -> bytes:
    """A serialised ONNX model as it is to be timed."""
    return quantised_to_time(model) if dtype == INT8 else model


def refuse_int8(name: str) -> None:
    """Check that the backend ``name`` runs models in int8.

    Raises:
        ConfigError: it does not.
    """
    if not isinstance(BACKENDS[name], OnnxBackend):
        raise ConfigError(
            "int8 needs a backend that reads ONNX", value=name, place="latency.backend", remedy="Use onnxruntime or openvino.",
        )


def timed(
    models: Iterable[Sequence[Runner]], threads: int, stage: Callable[[str, int], None], advance: Callable[[], None],
    rounds: int = runner.WHOLE_ROUNDS,
) -> list[Timing]:
    """Build all, then time them beside each other."""
    torch_threads = torch.get_num_threads()
    try:
        built = []
        for each in models:
            built.append(each)
            advance()
        stage("Timing models", rounds)
        return interleaved(built, threads, advance, rounds)
    finally:
        torch.set_num_threads(torch_threads)


def _led(menus: Mapping[str, Sequence[LayerPlan]], fed: Mapping[str, Feed]) -> dict[str, list[LayerPlan]]:
    leading = {feed.producer for feed in fed.values()}
    return {name: [LayerPlan()] if name in leading else list(menu) for name, menu in menus.items()}


def _chain(dense: nn.Module, name: str, fed: Mapping[str, Feed]) -> tuple[nn.Module, ...]:
    return tuple(dense.get_submodule(each) for each in (fed[name].producer, *fed[name].between, name))
