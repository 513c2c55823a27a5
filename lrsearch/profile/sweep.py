"""The profile: every choice of every layer, fitted once, on disk; a trial only reads it."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lrsearch.compress.fit import Decomposition, FitProblem
from lrsearch.compress.matricize import to_matrix
from lrsearch.compress.modules import pack_bits, unpack_bits
from lrsearch.profile.statistics import LayerStatistics, collect
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.plan import LayerPlan, Plan

VERSION = 1


def fingerprint(model: nn.Module, menus: Mapping[str, Sequence[LayerPlan]], data: str) -> str:
    """Names a profile by what went into it: weights, choices, calibration data, this version."""
    digest = hashlib.sha256(f"{VERSION} {data}".encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    digest.update(json.dumps({n: [asdict(c) for c in menu] for n, menu in menus.items()}).encode())
    return digest.hexdigest()[:16]


class Profile:
    """Reads the files that :func:`build` wrote.

    Attributes:
        layers: specs, in the model's order.
        menus: layer name → its choices, dense first.
    """

    def __init__(self, folder: Path, layers: Sequence[LayerSpec], menus: Mapping[str, Sequence[LayerPlan]]) -> None:
        self.folder, self.layers, self.menus = folder, tuple(layers), menus
        self._index = {layer.name: i for i, layer in enumerate(layers)}

    def path(self, name: str) -> Path:
        return self.folder / f"{self._index[name]:03d}.safetensors"

    @cached_property
    def damage(self) -> dict[str, NDArray[np.float64]]:
        """Layer name → ``(choices,)`` predicted KL divergence if only that layer took the choice."""
        return {name: self._column(name, "damage") for name in self.menus}

    @cached_property
    def error(self) -> dict[str, NDArray[np.float64]]:
        """Layer name → ``(choices,)`` output error relative to the output's energy."""
        return {name: self._column(name, "error") for name in self.menus}

    def _column(self, name: str, key: str) -> NDArray[np.float64]:
        with safe_open(self.path(name), "pt") as file:
            return np.asarray(file.get_tensor(key).numpy(), dtype=np.float64)

    def fits(self, plan: Plan, device: torch.device | str = "cpu") -> dict[str, Decomposition]:
        """The factors of every layer that ``plan`` touches."""
        specs = {layer.name: layer for layer in self.layers}
        return {n: self._fit(specs[n], self.menus[n].index(p), device) for n, p in plan.layers.items()}

    def _fit(self, spec: LayerSpec, choice: int, device: torch.device | str) -> Decomposition:
        with safe_open(self.path(spec.name), "pt", device=str(device)) as file:
            left, right, values, bits = (file.get_tensor(f"{choice}.{k}") for k in ("left", "right", "values", "bits"))
        mask = unpack_bits(bits, spec.numel)
        sparse = torch.zeros(spec.numel, device=values.device).masked_scatter(mask, values)
        return Decomposition(left, right, sparse.view(spec.matrix_shape), mask.view(spec.matrix_shape))


def build(
    model: nn.Module,
    layers: Sequence[LayerSpec],
    menus: Mapping[str, Sequence[LayerPlan]],
    batches: Iterable[Tensor],
    folder: Path,
    on_layer: Callable[[str], None] = lambda _: None,
) -> Profile:
    """Fit every choice of every layer; layers already in ``folder`` are kept.

    Args:
        model: the dense model, left as it was.
        batches: calibration inputs.
        folder: where the layers' files go; a killed build resumes there.
        on_layer: called with each layer's name when its file is there.
    """
    profile = Profile(folder, layers, menus)
    folder.mkdir(parents=True, exist_ok=True)
    missing = [layer for layer in layers if not profile.path(layer.name).exists()]
    statistics = collect(model, missing, batches) if missing else {}
    for layer in layers:
        if layer in missing:
            weight = model.get_parameter(f"{layer.name}.weight").detach().float()
            tensors = sweep(to_matrix(weight, layer.groups), layer, menus[layer.name], statistics.pop(layer.name))
            scratch = profile.path(layer.name).with_suffix(".writing")
            save_file(tensors, scratch)
            os.replace(scratch, profile.path(layer.name))
        on_layer(layer.name)
    return profile


def sweep(weight: Tensor, layer: LayerSpec, menu: Sequence[LayerPlan], statistics: LayerStatistics) -> dict[str, Tensor]:
    """All choices of one layer, each rank from its densest S down, every fit started by the one before.

    Returns:
        ``"{choice}.left|right|values|bits"`` per choice, ``"damage"`` and ``"error"`` over all.
    """
    problem = FitProblem(weight, statistics.gram)
    gram, curvature = statistics.gram, statistics.curvature.view(*weight.shape[:2])
    energy = float(((weight @ gram) * weight).sum().clamp_min(1e-30))
    damage, error = torch.zeros(len(menu), dtype=torch.float64), torch.zeros(len(menu), dtype=torch.float64)
    tensors: dict[str, Tensor] = {"damage": damage, "error": error}
    rank, last = -1, None
    for i in sorted(range(len(menu)), key=lambda i: (menu[i].rank, -menu[i].density)):
        if menu[i].untouched:
            continue
        last = problem.fit(menu[i].rank, menu[i].kept(layer), last if menu[i].rank == rank else None)
        rank = menu[i].rank
        residual = weight - last.effective()
        row_error = ((residual @ gram) * residual).sum(-1).clamp_min(0)
        damage[i], error[i] = float((row_error * curvature).sum()), float(row_error.sum()) / energy
        parts = {"left": last.left, "right": last.right, "values": last.sparse[last.mask], "bits": pack_bits(last.mask)}
        tensors |= {f"{i}.{key}": part.contiguous().cpu() for key, part in parts.items()}
    return tensors
