"""The profile: every choice of every layer, fitted once, on disk; a trial only reads it."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from lrsearch.compress.fit import Decomposition, FitProblem
from lrsearch.compress.matricize import times, to_matrix
from lrsearch.compress.shrinkage import best_shrinkage
from lrsearch.compress.sparsify import pack_bits, unpack_bits
from lrsearch.errors import ModelError, StudyError
from lrsearch.profile.importance import importance
from lrsearch.profile.sketches import SKETCHES
from lrsearch.profile.statistics import STATISTICS_CAP, LayerStatistics, Statistics, collect, groups
from lrsearch.spec.atomic import WRITING
from lrsearch.spec.blobs import SEALS, BlobStore, LocalStore
from lrsearch.spec.formats import FORMATS
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.memory import disk_cap, give_back, memory_share
from lrsearch.spec.plan import LayerPlan, Plan
from lrsearch.spec.waiting import waited_for
from lrsearch.task.base import Task
from lrsearch.task.forward import Inputs, device_of, state_tensors
from lrsearch.task.memory import out_of_memory

VERSION = 12  # of the fits and predictions: profiles of another are made again
TOGETHER = 16  # fits of a layer whose damage is predicted in one product, at most
FITS_CAP = memory_share(1, 24)  # bytes of such fits
PER_VALUE = 13  # bytes of each value of such a fit: S, its mask, what it leaves, and a product of that
LOCK = "profile.lock"


def fingerprint(model: nn.Module, menus: Mapping[str, Sequence[LayerPlan]], data: str) -> str:
    """Names a profile by what went into it: weights, choices, calibration data, this version."""
    digest = hashlib.sha256(f"{VERSION} {data}".encode())
    for name, tensor in state_tensors(model).items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    digest.update(json.dumps({n: [asdict(c) for c in menu] for n, menu in menus.items()}).encode())
    return digest.hexdigest()[:16]


class Profile:
    """Reads the files that :func:`build` wrote.

    Attributes:
        folder: where the files are.
        layers: specs, in the model's order.
        menus: layer name → its choices, dense first.
        blobs: the files by name; those in ``folder`` if None.
    """

    def __init__(
        self, folder: Path, layers: Sequence[LayerSpec], menus: Mapping[str, Sequence[LayerPlan]], blobs: BlobStore | None = None,
    ) -> None:
        self.folder, self.layers, self.menus = folder, tuple(layers), menus
        self._index, self._blobs = {layer.name: i for i, layer in enumerate(layers)}, blobs or LocalStore(folder)

    def blob(self, name: str) -> str:
        """What the file of layer ``name`` is called."""
        return f"{self._index[name]:03d}.safetensors"

    def whole(self, name: str) -> bool:
        """Whether the file of layer ``name`` is there, as it was written, or another machine has it."""
        return self._blobs.local(self.blob(name)) is not None

    def share(self) -> None:
        """Let other machines have the files that only this one has."""
        for name in map(self.blob, self._index):
            if not self._blobs.exists(name) and (path := self._blobs.local(name)):
                self._blobs.put(name, path.read_bytes())

    def save(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep what :func:`sweep` made of layer ``name``."""
        self._blobs.put(self.blob(name), to_safetensors(dict(tensors)))

    def path(self, name: str) -> Path:
        """The file of layer ``name``, checked.

        Raises:
            StudyError: it is gone, or damaged.
        """
        if (path := self._blobs.local(self.blob(name))) is None:
            raise StudyError(
                "a layer's fits must be as they were written", value="missing or damaged", place=str(self.folder / self.blob(name)),
                remedy="Run the same command again: it makes them anew.",
            )
        return path

    @cached_property
    def damage(self) -> dict[str, NDArray[np.float64]]:
        """Layer name → ``(choices,)`` what the output is predicted to suffer if only that layer took the choice; see :func:`agreed`."""
        return {name: agreed(self.sketched[name], self.error[name]) for name in self.menus}

    @cached_property
    def sketched(self) -> dict[str, NDArray[np.float64]]:
        """The same, estimated from random projections alone; see :class:`~lrsearch.profile.sketches.Sketches`."""
        return {name: self._column(name, "damage") for name in self.menus}

    @cached_property
    def error(self) -> dict[str, NDArray[np.float64]]:
        """Layer name → ``(choices,)`` output error on held-out inputs, relative to the output's energy."""
        return {name: self._column(name, "error") for name in self.menus}

    def _column(self, name: str, key: str) -> NDArray[np.float64]:
        with safe_open(self.path(name), "pt") as file:
            return np.asarray(file.get_tensor(key).numpy(), dtype=np.float64)

    def fits(self, plan: Plan, device: torch.device | str = "cpu") -> dict[str, Decomposition]:
        """The factors of every layer that ``plan`` touches."""
        specs = {layer.name: layer for layer in self.layers}
        return {n: self._fit(specs[n], self.menus[n].index(p), device) for n, p in plan.layers.items()}

    def _fit(self, spec: LayerSpec, choice: int, device: torch.device | str) -> Decomposition:
        plan = self.menus[spec.name][choice]
        count = len(FORMATS[plan.format].shapes(spec, plan.rank)) if plan.rank else 0
        with safe_open(self.path(spec.name), "pt") as file:
            values, bits, *factors = (file.get_tensor(f"{choice}.{key}").to(device) for key in ("values", "bits", *range(count)))
        mask = unpack_bits(bits, spec.numel)
        sparse = torch.zeros(spec.numel, device=values.device).masked_scatter(mask, values)
        return Decomposition(spec, plan, tuple(factors), sparse.view(spec.matrix_shape), mask.view(spec.matrix_shape))


def agreed(sketched: NDArray[np.float64], error: NDArray[np.float64]) -> NDArray[np.float64]:
    """The damage of one layer's choices: the geometric mean of what sketches and output errors say, ``(choices,)`` each.

    Sketches are few, and an allocation picks the choices that they happen to flatter; errors are exact, but know nothing of what
    the network makes of them, so they take the mean ratio to the sketches, over the layer's choices, as their unit.
    """
    if not sketched.any():  # the outputs take no gradient
        return error
    known = (sketched > 0) & (error > 0)
    unit = np.exp(np.log(sketched[known] / error[known]).mean()) if known.any() else 1.0
    return np.where(known, np.sqrt(sketched * error * unit), sketched)


def build(
    model: nn.Module,
    layers: Sequence[LayerSpec],
    menus: Mapping[str, Sequence[LayerPlan]],
    batches: Iterable[Inputs],
    check: Iterable[Inputs],
    folder: Path,
    stage: Callable[[str, int], None] = lambda _title, _done: None,
    advance: Callable[[], None] = lambda: None,
    task: Task | None = None,
    expect: Callable[[float], None] = lambda _: None,
    note: Callable[[str], None] = lambda _: None,
    blobs: BlobStore | None = None,
    alone: Callable[[], AbstractContextManager[None]] = nullcontext,
    sketches: int = SKETCHES,
) -> Profile:
    """Fit every choice of every layer; layers already in ``folder`` are kept, but for what is damaged.

    While another process builds the same profile, this one waits, and then takes what it finished.

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
        sketches: batches in ``check``. Where all layers' statistics find no room, they are collected for some layers after others.
        alone: keeps other machines from making the same meanwhile, who then find it in ``blobs``.

    Raises:
        ModelError: the fits of a layer do not fit into memory.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with waited_for(folder / LOCK, lambda: note("another process makes the profile of this model; this one waits for it")):
        for scratch in (path for part in (folder, folder / SEALS) for path in part.glob(f"*{WRITING}-*")):
            scratch.unlink(missing_ok=True)  # of processes that were killed
        profile = Profile(folder, layers, menus, blobs)
        with nullcontext() if all(profile.whole(layer.name) for layer in layers) else alone():
            return _built(model, profile, batches, check, stage, advance, task, expect, sketches)


def _built(
    model: nn.Module, profile: Profile, batches: Iterable[Inputs], check: Iterable[Inputs], stage: Callable[[str, int], None],
    advance: Callable[[], None], task: Task | None, expect: Callable[[float], None], sketches: int,
) -> Profile:
    """:func:`build` with the locks in hand."""
    profile.share()
    missing = [layer for layer in profile.layers if not profile.whole(layer.name)]
    sizes = {layer.name: lasting(layer, len(profile.menus[layer.name])) for layer in missing}
    left = {layer.name for layer in missing}

    def begin() -> None:
        stage("Fitting", len(profile.layers) - len(left))

    def fitted(name: str) -> None:
        left.discard(name)
        expect(1 - sum(sizes[each] for each in left) / sum(sizes.values()))
        advance()

    alone = _threads(device_of(model)) == 1  # then the smallest come first, so that the time left is soon known
    order = sorted(missing, key=work, reverse=not alone)
    for group in groups(order, sketches, STATISTICS_CAP, disk_cap()):
        stage("Statistics", 0)
        blocks = profile.folder / "blocks"
        _fit(model, group, profile, collect(model, group, batches, check, blocks, advance=advance, task=task), begin, fitted)
        shutil.rmtree(blocks, ignore_errors=True)
    if not missing:
        begin()
    return profile


def _fit(
    model: nn.Module, group: Sequence[LayerSpec], profile: Profile, statistics: Statistics, begin: Callable[[], None],
    fitted: Callable[[str], None],
) -> None:
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

    begin()
    with _workers(device_of(model)) as pool:
        tasks = {pool.submit(fit_layer, layer): layer.name for layer in group}
        for future in as_completed(tasks):
            future.result()
            fitted(tasks[future])


def lasting(layer: LayerSpec, choices: int) -> float:
    """The time of its fits, up to a factor. Small products are slow for their size: of a MobileNetV3 70 % of the work took 21 % of it."""
    return float(work(layer) ** 0.5 * choices)


def work(layer: LayerSpec) -> int:
    """Multiply-accumulates of a product with the Gram matrix: with several threads what takes longest is begun first."""
    return layer.numel * layer.columns


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


def sweep(weight: Tensor, layer: LayerSpec, menu: Sequence[LayerPlan], statistics: LayerStatistics) -> dict[str, Tensor]:
    """All choices of one layer.

    Returns:
        ``"{choice}.{k}"`` for factor k, ``"{choice}.values"`` and ``"{choice}.bits"`` per choice,
        ``"damage"`` and ``"error"`` over all.
    """
    shrinkage = best_shrinkage(layer, weight, statistics.gram, statistics.check)
    problem = FitProblem(layer, weight, statistics.gram, shrinkage, importance(statistics.gram, statistics.sketches))
    energy = float((times(weight, statistics.check) * weight).sum().clamp_min(1e-30))
    damage, error = torch.zeros(len(menu), dtype=torch.float64), torch.zeros(len(menu), dtype=torch.float64)
    tensors: dict[str, Tensor] = {"damage": damage, "error": error}
    fits = ((i, problem.fit(plan)) for i, plan in enumerate(menu) if not plan.untouched)
    together = max(1, min(TOGETHER, FITS_CAP // (PER_VALUE * layer.numel)))
    while some := list(islice(fits, together)):
        residuals = torch.stack([weight - fit.effective() for _, fit in some])
        index = [i for i, _ in some]
        damage[index] = statistics.damage(residuals).double().cpu()
        error[index] = ((times(residuals, statistics.check) * residuals).sum((1, 2, 3)).clamp_min(0) / energy).double().cpu()
        del residuals
        for i, fit in some:
            parts = {"values": fit.sparse[fit.mask], "bits": pack_bits(fit.mask)} | {str(k): f for k, f in enumerate(fit.factors)}
            tensors |= {f"{i}.{key}": part.contiguous().cpu() for key, part in parts.items()}
        some.clear()  # before the next are fitted
    return tensors
