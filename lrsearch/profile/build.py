"""Builds a profile: statistics of the layers, then fits of all their choices; machines that share it make parts of it side by side."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from lrsearch.compress.matricize import to_matrix
from lrsearch.errors import ModelError
from lrsearch.profile.sketches import SKETCHES
from lrsearch.profile.statistics import STATISTICS_CAP, Statistics, collect, groups
from lrsearch.profile.sweep import Profile, sweep
from lrsearch.spec.atomic import WRITING
from lrsearch.spec.blobs import SEALS, BlobStore
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.memory import disk_cap, give_back
from lrsearch.spec.plan import LayerPlan
from lrsearch.spec.waiting import waited_for
from lrsearch.task.base import Task
from lrsearch.task.forward import Inputs, device_of
from lrsearch.task.memory import out_of_memory

LOCK = "profile.lock"
BLOCKS = "blocks"  # statistics on the disk, while a profile is built
PART = 300.0  # seconds of fits in a part, of :func:`core_seconds`
ACCELERATOR = 16  # cores that an accelerator counts as; not measured
Menus = Mapping[str, Sequence[LayerPlan]]


class Claims(Protocol):
    """What keeps workers from making the same part: :class:`~lrsearch.study.workers.Workers`."""

    def free(self, names: Sequence[str], most: int) -> AbstractContextManager[list[str]]:
        """Have for oneself the first of ``names`` that nobody has; ``most`` at most, or none."""

    def sole(self, what: str) -> AbstractContextManager[None]:
        """Have ``what`` for oneself; wait until it is free."""


def build(
    model: nn.Module,
    layers: Sequence[LayerSpec],
    menus: Menus,
    batches: Iterable[Inputs],
    check: Iterable[Inputs],
    folder: Path,
    stage: Callable[[str, int], None] = lambda _title, _done: None,
    advance: Callable[[], None] = lambda: None,
    task: Task | None = None,
    expect: Callable[[float], None] = lambda _: None,
    note: Callable[[str], None] = lambda _: None,
    blobs: BlobStore | None = None,
    claims: Claims | None = None,
    sketches: int = SKETCHES,
) -> Profile:
    """Fit every choice of every layer; layers already in ``folder`` are kept, but for what is damaged.

    While another process of this machine builds the same profile, this one waits, and then takes what it finished.

    Args:
        model: the dense model, left as it was.
        batches: calibration inputs to fit to; read several times where statistics find no room at once.
        check: others, read as often, on which the errors of the fits and what they do to the output are measured; see :func:`collect`.
        folder: where the layers' files go; a killed build resumes there.
        stage: told when ``"Statistics"`` (a step per batch) and ``"Fitting"`` (a step per layer) begin, or begin again, and how many
            steps were done before.
        advance: called after each step.
        task: of the model; classification if None.
        expect: told what share of the fits' work is done, as layers differ in size.
        note: told, after each minute, that this one waits.
        blobs: where the layers' files are kept, so that other machines have them; ``folder`` is the part of it that is here.
        claims: of the workers that share ``blobs``, who make parts of the profile side by side. None where there are no others.
        sketches: batches in ``check``. Where all layers' statistics find no room, they are collected for some layers after others.

    Raises:
        ModelError: the fits of a layer do not fit into memory.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with waited_for(folder / LOCK, lambda: note("another process makes the profile of this model; this one waits for it")):
        for scratch in (path for part in (folder, folder / SEALS) for path in part.glob(f"*{WRITING}-*")):
            scratch.unlink(missing_ok=True)  # of processes that were killed
        shutil.rmtree(folder / BLOCKS, ignore_errors=True)  # likewise
        profile = Profile(folder, layers, menus, blobs)
        profile.share()
        tally = _Tally(profile, stage, advance, expect)
        layers_of = {f"profile, part {i}": part for i, part in enumerate(parts(layers, menus))}
        while left := tally.unfinished(layers_of):
            with claims.free(left, _cores(device_of(model))) if claims else nullcontext(left) as names:
                missing = profile.missing([layer for name in names for layer in layers_of[name]])
                _make(model, missing, profile, batches, check, tally, task, sketches)
            if not names and claims:  # others make all that is left
                with claims.sole(left[0]):
                    pass
        tally.end()
        return profile


def parts(layers: Sequence[LayerSpec], menus: Menus) -> list[list[LayerSpec]]:
    """``layers`` in parts, in order, of about ``PART`` seconds of one core, or of one layer: for all workers the same."""
    found, taken = [list[LayerSpec]()], 0.0
    for layer in layers:
        takes = core_seconds(layer, len(menus[layer.name]))
        if found[-1] and taken + takes / 2 > PART:
            found.append([])
            taken = 0.0
        found[-1].append(layer)
        taken += takes
    return found


def core_seconds(layer: LayerSpec, choices: int) -> float:
    """What its fits take one core of 95 GFLOP/s in float32, about: a law of layers with 768 and more columns, at 8 choices each."""
    rows, columns = layer.numel // layer.columns, layer.columns
    return (6.5e-9 * rows * columns**2 + 1.5e-9 * columns**3 + 2.8e-6 * rows * columns) * choices / 8


def lasting(layer: LayerSpec, choices: int) -> float:
    """The time of its fits, up to a factor. Small products are slow for their size: of a MobileNetV3 70 % of the work took 21 % of it."""
    return float(work(layer) ** 0.5 * choices)


def work(layer: LayerSpec) -> int:
    """Multiply-accumulates of a product with the Gram matrix: with several threads what takes longest is begun first."""
    return layer.numel * layer.columns


class _Tally:
    """How much of a profile is made, by whomever, and who is told of it."""

    def __init__(
        self, profile: Profile, stage: Callable[[str, int], None], advance: Callable[[], None], expect: Callable[[float], None],
    ) -> None:
        self.stage, self.advance, self._expect, self._profile = stage, advance, expect, profile
        self._left, self._begun, self._told = dict[str, float](), 0.0, -1

    def unfinished(self, layers_of: Mapping[str, Sequence[LayerSpec]]) -> list[str]:
        """The names of the parts that are not whole by now."""
        missing = {name: self._profile.missing(part) for name, part in layers_of.items()}
        self._left = {layer.name: lasting(layer, len(self._profile.menus[layer.name])) for part in missing.values() for layer in part}
        return [name for name, part in missing.items() if part]

    def begin(self) -> None:
        """Fits begin."""
        self._begun, self._told = sum(self._left.values()), len(self._profile.layers) - len(self._left)
        self.stage("Fitting", self._told)

    def fitted(self, name: str) -> None:
        """Those of a layer are made."""
        self._left.pop(name, None)
        self._told += 1
        self._expect(1 - sum(self._left.values()) / (self._begun or 1.0))
        self.advance()

    def end(self) -> None:
        """All are made, the last of them perhaps by others."""
        if self._told != len(self._profile.layers):
            self.begin()


def _make(
    model: nn.Module, layers: Sequence[LayerSpec], profile: Profile, batches: Iterable[Inputs], check: Iterable[Inputs], tally: _Tally,
    task: Task | None, sketches: int,
) -> None:
    """Collect the statistics of ``layers``, as many at a time as find room, and fit them."""
    alone, blocks = _threads(device_of(model)) == 1, profile.folder / BLOCKS
    order = sorted(layers, key=work, reverse=not alone)  # the smallest first on one thread, so that the time left is soon known
    for group in groups(order, sketches, STATISTICS_CAP, disk_cap()):
        tally.stage("Statistics", 0)
        try:
            _fit(model, group, profile, collect(model, group, batches, check, blocks, advance=tally.advance, task=task), tally)
        finally:
            shutil.rmtree(blocks, ignore_errors=True)


def _fit(model: nn.Module, group: Sequence[LayerSpec], profile: Profile, statistics: Statistics, tally: _Tally) -> None:
    """Fit the layers of ``group``, side by side, and keep them."""
    def fit_layer(layer: LayerSpec) -> None:
        weight = model.get_parameter(f"{layer.name}.weight").detach().float()
        try:
            tensors = sweep(to_matrix(weight, layer), layer, profile.menus[layer.name], statistics[layer.name])
        except Exception as error:
            if not out_of_memory(error):
                raise
            raise ModelError(
                "a layer's fits must fit into memory", value=f"{type(error).__name__}: {error}", place=layer.name,
                remedy="Free memory, use fewer threads, or exclude the layer.",
            ) from error
        profile.save(layer.name, tensors)
        give_back()

    tally.begin()
    with _workers(device_of(model)) as pool:
        tasks = {pool.submit(fit_layer, layer): layer.name for layer in group}
        for future in as_completed(tasks):
            future.result()
            tally.fitted(tasks[future])


def _cores(device: torch.device) -> int:
    """As many cores as compute here at once."""
    return _threads(device) if device.type == "cpu" else ACCELERATOR


def _threads(device: torch.device) -> int:
    return torch.get_num_threads() if device.type == "cpu" else 1


@contextmanager
def _workers(device: torch.device) -> Iterator[ThreadPoolExecutor]:
    """As many threads as torch has, each with one of its own: fits are too small to share theirs well.

    An accelerator gets one: its linear algebra is loaded on first use, which several threads at once break, and it has one queue.
    """
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(_threads(device), initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
