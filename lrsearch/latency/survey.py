"""Survey: everything of one model that is to be timed, timed here or, through files, elsewhere."""

import copy
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
from lrsearch.deploy.channel_flow import Feed, fed_layers, keep_outputs, last, topped
from lrsearch.deploy.deployed import deployed
from lrsearch.deploy.onnx_graph import NeedsExporter, onnx_model
from lrsearch.deploy.onnx_template import Template
from lrsearch.deploy.plain_layers import narrowed
from lrsearch.deploy.quantize import REVISION, quantised_to_time
from lrsearch.errors import ConfigError
from lrsearch.latency import runner
from lrsearch.latency.backends import BACKENDS, OnnxBackend, backend
from lrsearch.latency.chains import fed_jobs, fed_signature, last_share, producers_share
from lrsearch.latency.micro_models import Calls, Job, alone, architecture, calls, jobs, randomised, shape_of
from lrsearch.latency.runner import Runner, Timing, interleaved, machine_facts, same_cpu
from lrsearch.latency.table import DENSE, Conditions, LatencyTable, grained
from lrsearch.spec.config import Precision
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.plan import LayerPlan, Plan
from lrsearch.spec.unread import drops_columns
from lrsearch.task.forward import Inputs, batches_of, examples_in

INT8: Precision = "int8"


@dataclass(frozen=True)
class Survey:
    """What is to be timed of one model.

    Attributes:
        model: the dense model.
        layers: its compressible layers.
        sample: a batch of the size that is timed.
        calls: signatures of every layer's calls, and of those that feed one.
        jobs: the distinct layers, in every form.
        architecture: a digest of what the model computes.
        fed: layers that may drop columns → what alone feeds them, whose outputs then go too.
        chains: the same layers → signature of the layer with what feeds it.
    """

    model: nn.Module
    layers: tuple[LayerSpec, ...]
    sample: Inputs
    calls: Calls
    jobs: tuple[Job, ...]
    architecture: str
    fed: Mapping[str, Feed]
    chains: Mapping[str, str]

    @classmethod
    def of(
        cls, model: nn.Module, layers: Sequence[LayerSpec], menus: Mapping[str, Sequence[LayerPlan]], sample: Inputs, batch: int,
    ) -> "Survey":
        """Args: ``sample`` is a batch that the model accepts, of any size; ``batch`` the size to time."""
        sample, specs = batches_of(sample, batch), {layer.name: layer for layer in layers}
        fed = fed_layers(dense := deployed(model, sample), menus, sample)
        called = calls(model, dict.fromkeys([*specs, *(each for feed in fed.values() for each in feed.layers)]), sample)
        apart = {n: [c for c in menu if n not in fed or not drops_columns(c)] for n, menu in menus.items()}
        timed = *jobs(model, layers, apart, called), *fed_jobs(dense, specs, menus, fed)
        chains = {name: fed_signature(dense, name, feed) for name, feed in fed.items()}
        return cls(model, tuple(layers), sample, called, timed, architecture(model, sample), fed, chains)

    def merged(self, table: LatencyTable, plan: Plan) -> list[str]:
        """Names of the layers that run fastest as one dense layer."""
        return table.merged(self.calls, plan, self.fed)

    def spared(
        self, table: LatencyTable, menus: Mapping[str, Sequence[LayerPlan]],
    ) -> dict[str, dict[tuple[LayerPlan, LayerPlan], float]]:
        """Layer name → what it and the layer that it feeds may become → milliseconds less together than :meth:`LatencyTable.layers`
        have, which take the first as dense where columns are dropped: none, or less than none."""
        found, specs = dict[str, dict[tuple[LayerPlan, LayerPlan], float]](), {layer.name: layer for layer in self.layers}
        for name, feed in ((name, feed) for name, feed in self.fed.items() if feed.producer in specs):
            producer, dense = specs[feed.producer], table.alone(self.calls[feed.producer], DENSE)
            left = {own: self._left(table, producer, own) / dense for own in menus[feed.producer]}
            columns = [choice for choice in menus[name] if drops_columns(choice)]
            part = {c: producers_share(specs, name, feed) * table.saved_in_chain(self.chains[name], c) for c in columns}
            found[feed.producer] = {
                (own, c): -grained(table.scale * ms * (1 - share)) for c, ms in part.items() for own, share in left.items()
            }
        return found

    def _left(self, table: LatencyTable, layer: LayerSpec, plan: LayerPlan) -> float:
        """Milliseconds of what has a row for each output in a layer under ``plan``."""
        chain = self.chains.get(layer.name) if drops_columns(plan) else None
        ms = table.ms(self.calls[layer.name], plan, chain) if chain else table.alone(self.calls[layer.name], str(plan.executed))
        return last_share(layer, plan) * ms

    def saved(self, table: LatencyTable, plan: Plan) -> float:
        """Milliseconds that ``plan`` saves."""
        alone = sum(table.ms(self.calls[n], LayerPlan()) - table.ms(self.calls[n], p, self.chains.get(n)) for n, p in plan.layers.items())
        menus = {layer.name: [plan[layer.name]] for layer in self.layers}
        return alone + sum(ms for each in self.spared(table, menus).values() for ms in each.values())

    def conditions(self, name: str, threads: int, cpu: str | None = None, precision: Precision = "float32") -> Conditions:
        """Those of a table measured here and now; if another machine's ``cpu`` is named, of any version there.

        Args:
            precision: that is deployed; but for int8 all run in the type of the weights.

        Raises:
            ConfigError: no such backend, or it is not installed, or it does not read ONNX, which int8 is written in.
        """
        where = {"cpu": cpu, "version": ""} if cpu else {"version": backend(name).version(), **machine_facts()}
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
        made |= {"quantised": REVISION} if conditions.dtype == INT8 else {}
        what = sorted((job.signature, job.key) for job in self.jobs)
        return hashlib.sha256(json.dumps([made, self.architecture, what], sort_keys=True).encode()).hexdigest()[:16]

    def covers(self, table: LatencyTable, conditions: Conditions, anywhere: bool = False) -> bool:
        """Whether ``table`` was measured under ``conditions``, load and date aside, and has all that is to be timed.

        Args:
            anywhere: on whichever machine.
        """
        mine = replace(table.conditions, load=conditions.load, date=conditions.date)
        if anywhere or same_cpu(mine.cpu, conditions.cpu):
            mine = replace(mine, cpu=conditions.cpu)
        if anywhere:
            mine = replace(mine, version=conditions.version)
        entries = all(job.key in table.entries.get(job.signature, {}) for job in self.jobs)
        return mine == conditions and table.architecture == self.architecture and entries

    def models(self) -> Iterator[tuple[nn.Module, Inputs]]:
        """The whole dense model, deployed, then every job, each with its input."""
        yield deployed(self.model, self.sample), self.sample
        for job in self.jobs:
            yield job.module()

    def onnx(self, plan: Plan, merged: Collection[str]) -> bytes:
        """The model that :meth:`planned` gives as ONNX, in a fraction of the time where the graph allows it."""
        touched = [n for n, p in plan.layers.items() if n not in merged and not p.executed.untouched]
        if all(len(self.calls[name]) == 1 for name in touched):
            with suppress(KeyError, NeedsExporter):
                return self._template.exchanged(self._pieces(plan, touched))
        return onnx_model(self.planned(plan, merged), self.sample)

    def _pieces(self, plan: Plan, touched: Sequence[str]) -> dict[str, tuple[nn.Module, Tensor]]:
        """Name → module, random, and an input for it, of ``touched`` layers and of those that feed one which drops columns."""
        specs = {layer.name: layer for layer in self.layers}
        made = {n: alone(self._dense.get_submodule(n), specs[n], plan[n]) for n in touched}
        into = {n: shape_of(self.calls[n][0])[self._axis(n)] for n in touched}
        fewer = {n: self._fewer(specs[n], plan[n]) for n in touched if n in self.fed and drops_columns(plan[n]) and not plan[n].zero}
        fewer = {n: small for n, small in fewer.items() if last(made.get(p := self.fed[n].producer, self._dense.get_submodule(p)))}
        for name, (module, index) in fewer.items():
            made[name], into[name] = module, len(index)
        for name, (_, index) in fewer.items():
            for each in self.fed[name].layers:
                made.setdefault(each, copy.deepcopy(self._dense.get_submodule(each)))
                narrow = last(made[each]) or made[each]  # a depthwise convolution is narrowed itself
                assert isinstance(narrow, nn.Linear | Conv)
                keep_outputs(narrow, index)
                whole = shape_of(self.calls[each][0])[self._axis(each)]
                into.setdefault(each, whole if each == self.fed[name].producer else len(index))
        return {name: (module, self._input(name, into[name])) for name, module in made.items()}

    def _fewer(self, layer: LayerSpec, choice: LayerPlan) -> tuple[nn.Module, Tensor]:
        """The layer on the channels alone that it reads, random, and which these are."""
        small = randomised(CompressedLayer(self._dense.get_submodule(layer.name), layer, choice))  # type: ignore[arg-type]
        assert small.index is not None
        index = topped(small.index, layer.weight_shape[1])
        return narrowed(small, index), index

    def _axis(self, name: str) -> int:
        """Of the channels in a layer's inputs."""
        return 1 if isinstance(self._dense.get_submodule(name), Conv) else -1

    def _input(self, name: str, channels: int) -> Tensor:
        """For layer ``name``, of so many channels."""
        shape = list(shape_of(self.calls[name][0]))
        shape[self._axis(name)] = channels
        return torch.zeros(shape, dtype=self._dtype)

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
            entries.setdefault(job.signature, {})[job.key] = timing
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
