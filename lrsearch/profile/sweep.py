"""The profile: every choice of every layer, fitted once, on disk; a trial only reads it."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
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
from lrsearch.compress.matricize import times
from lrsearch.compress.shrinkage import best_shrinkage
from lrsearch.compress.sparsify import pack_bits, unpack_bits
from lrsearch.errors import StudyError
from lrsearch.profile.importance import importance
from lrsearch.profile.statistics import LayerStatistics
from lrsearch.spec.blobs import BlobStore, LocalStore
from lrsearch.spec.formats import FORMATS
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.memory import memory_share
from lrsearch.spec.plan import LayerPlan, Plan
from lrsearch.task.forward import state_tensors

VERSION = 12  # of the fits and predictions: profiles of another are made again
TOGETHER = 16  # fits of a layer whose damage is predicted in one product, at most
FITS_CAP = memory_share(1, 24)  # bytes of such fits
PER_VALUE = 13  # bytes of each value of such a fit: S, its mask, what it leaves, and a product of that


def fingerprint(model: nn.Module, menus: Mapping[str, Sequence[LayerPlan]], data: str) -> str:
    """Names a profile by what went into it: weights, choices, calibration data, this version."""
    digest = hashlib.sha256(f"{VERSION} {data}".encode())
    for name, tensor in state_tensors(model).items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    digest.update(json.dumps({n: [asdict(c) for c in menu] for n, menu in menus.items()}).encode())
    return digest.hexdigest()[:16]


class Profile:
    """Reads the files that :func:`~lrsearch.profile.build.build` wrote.

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

    def missing(self, layers: Iterable[LayerSpec]) -> list[LayerSpec]:
        """Which of ``layers`` are not whole."""
        return [layer for layer in layers if not self.whole(layer.name)]

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
