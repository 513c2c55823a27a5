"""Builds a profile: statistics of the layers, then fits of all their choices; machines that share it make parts of it side by side."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from torch import nn

from lrsearch.compress.matricize import to_matrix
from lrsearch.errors import ModelError
from lrsearch.profile.sketches import SKETCHES
from lrsearch.profile.statistics import STATISTICS_CAP, Statistics, collect, groups
from lrsearch.profile.sweep import Profile, sweep
from lrsearch.spec.blobs import SEALS, BlobStore
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.memory import disk_cap, give_back
from lrsearch.spec.plan import LayerPlan
from lrsearch.spec.waiting import waited_for
from lrsearch.task.base import Task
from lrsearch.task.forward import Inputs, device_of
from lrsearch.task.memory import out_of_memory

WHOLE = "profile"
OTHERS = "another process makes the profile of this model; this one waits for it"
PART = 300.0  # seconds of fits that one machine takes at a time, of :func:`fitting`; the model runs over the data once for each
Menus = Mapping[str, Sequence[LayerPlan]]
Claim = Callable[[Sequence[str]], AbstractContextManager[str]]


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
    claim: Claim | None = None,
    sketches: int = SKETCHES,
) -> Profile:
    """Fit every choice of every layer; layers already in ``folder`` are kept, but for what is damaged.

    While another process of this machine makes the same part, this one waits, and then takes what it finished.

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
        claim: of names of parts that are not whole, has the first for this machine that no other makes, and says which; it waits where
            others make all of them. None where no other machine shares ``blobs``: then there is one part.
        sketches: batches in ``check``. Where all layers' statistics find no room, they are collected for some layers after others.

    Raises:
        ModelError: the fits of a layer do not fit into memory.
    """
    folder.mkdir(parents=True, exist_ok=True)
    profile = Profile(folder, layers, menus, blobs)
    profile.share()
    made = _Made(profile, stage, advance, expect)
    named = {f"profile, part {i}": part for i, part in enumerate(parts(layers, menus))} if claim else {WHOLE: layers}
    while left := made.look(named):
        with (claim or _first)(left) as name, waited_for(folder / f"{name}.lock", lambda: note(OTHERS)):
            for scratch in (path for part in (folder, folder / SEALS) for path in profile.unfinished(part, named[name])):
                scratch.unlink(missing_ok=True)  # of processes that were killed
            _make(model, profile.missing(named[name]), profile, folder / f"blocks of {name}", batches, check, made, task, sketches)
    made.end()
    return profile


def parts(layers: Sequence[LayerSpec], menus: Menus) -> list[list[LayerSpec]]:
    """``layers`` in parts, in order, of about ``PART`` seconds of fits; all machines divide them so."""
    found, taken = [list[LayerSpec]()], 0.0
    for layer in layers:
        takes = fitting(layer, len(menus[layer.name]))
        if found[-1] and taken + takes / 2 > PART:
            found.append([])
            taken = 0.0
        found[-1].append(layer)
        taken += takes
    return found


def fitting(layer: LayerSpec, choices: int) -> float:
    """Seconds that its fits take one core of 95 GFLOP/s in float32, about: a law of layers with 768 and more columns, at 8 choices each."""
    rows, columns = layer.numel // layer.columns, layer.columns
    return (6.5e-9 * rows * columns**2 + 1.5e-9 * columns**3 + 2.8e-6 * rows * columns) * choices / 8


def lasting(layer: LayerSpec, choices: int) -> float:
    """The time of its fits, up to a factor. Small products are slow for their size: of a MobileNetV3 70 % of the work took 21 % of it."""
    return float(work(layer) ** 0.5 * choices)


def work(layer: LayerSpec) -> int:
    """Multiply-accumulates of a product with the Gram matrix: with several threads what takes longest is begun first."""
    return layer.numel * layer.columns


@contextmanager
def _first(names: Sequence[str]) -> Iterator[str]:
    """The claim of who is alone."""
    yield names[0]


class _Made:
    """How much of a profile is made, and who is told of it."""

    def __init__(
        self, profile: Profile, stage: Callable[[str, int], None], advance: Callable[[], None], expect: Callable[[float], None],
    ) -> None:
        self.stage, self.advance, self._expect, self._profile = stage, advance, expect, profile
        self._left = {layer.name: lasting(layer, len(profile.menus[layer.name])) for layer in profile.missing(profile.layers)}
        self._all, self._told = sum(self._left.values()), False

    def look(self, named: Mapping[str, Sequence[LayerSpec]]) -> list[str]:
        """The names of the parts that are not whole by now, whoever made the others."""
        missing = {name: [layer.name for layer in self._profile.missing(part)] for name, part in named.items()}
        self._left = {name: self._left.get(name, 0.0) for names in missing.values() for name in names}
        return [name for name, layers in missing.items() if layers]

    def begin(self) -> None:
        """Fits begin."""
        self._told = True
        self.stage("Fitting", len(self._profile.layers) - len(self._left))

    def fitted(self, name: str) -> None:
        """Those of a layer are made."""
        self._left.pop(name)
        self._expect(1 - sum(self._left.values()) / self._all)
        self.advance()

    def end(self) -> None:
        """All are made; that is new to who is told where this machine made none."""
        if not self._told:
            self.begin()


def _make(
    model: nn.Module, layers: Sequence[LayerSpec], profile: Profile, blocks: Path, batches: Iterable[Inputs], check: Iterable[Inputs],
    made: _Made, task: Task | None, sketches: int,
) -> None:
    """Collect the statistics of ``layers``, as many at a time as find room, in ``blocks`` where memory has none, and fit them."""
    alone = _threads(device_of(model)) == 1  # then the smallest come first, so that the time left is soon known
    for group in groups(sorted(layers, key=work, reverse=not alone), sketches, STATISTICS_CAP, disk_cap()):
        shutil.rmtree(blocks, ignore_errors=True)  # of a process that was killed
        made.stage("Statistics", 0)
        _fit(model, group, profile, collect(model, group, batches, check, blocks, advance=made.advance, task=task), made)
        shutil.rmtree(blocks, ignore_errors=True)


def _fit(model: nn.Module, group: Sequence[LayerSpec], profile: Profile, statistics: Statistics, made: _Made) -> None:
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

    made.begin()
    with _workers(device_of(model)) as pool:
        tasks = {pool.submit(fit_layer, layer): layer.name for layer in group}
        for future in as_completed(tasks):
            future.result()
            made.fitted(tasks[future])


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
