"""One pass over the calibration data: the statistics of all layers that fits and predictions need."""

import mmap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lrsearch.compress.matricize import gram, row_chunks
from lrsearch.profile.sketches import Sketches, floats
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.memory import memory_share
from lrsearch.task.base import Task
from lrsearch.task.forward import Inputs, first_tensor, forward

STATISTICS_CAP = memory_share(1, 6)  # bytes of memory for Gram matrices, and as many for sketches; the rest goes to disk
AT_ONCE = 8  # sketches that are float32 at a time, to multiply with; they are kept in bfloat16


@dataclass
class LayerStatistics:
    """Statistics of one layer.

    Attributes:
        gram: ``layer.gram_shape``, mostly ``(groups, columns, columns)``: E[xxᵀ] over examples and positions.
        check: the same over other examples, which tell what a fit is worth.
        sketches: ``(k, groups, rows, columns)``, bfloat16: gradients g of the output in random directions, so that the
            mean of ½⟨g, Δ⟩² is what a change Δ of the weight does to the output for those other examples; see
            :class:`~lrsearch.profile.sketches.Sketches`.
    """

    gram: Tensor
    check: Tensor
    sketches: Tensor

    def damage(self, changes: Tensor) -> Tensor:
        """``(n,)``: what each of ``changes`` ``(n, groups, rows, columns)`` to the weight alone does to the output.

        In nats of the softmax at ``TEMPERATURE`` T, times T² (Hinton et al. 2015): to compare changes by, not the KL itself.
        """
        total = changes.new_zeros(len(changes))
        for start in range(0, len(self.sketches), AT_ONCE):
            part = self.sketches[start : start + AT_ONCE]
            total += (part.flatten(1).to(changes) @ changes.flatten(1).T).square().sum(0)
        return total / (2 * max(1, len(self.sketches)))


class Grams:
    """Gram matrices of all layers, float32, summed as the data come.

    Those of the widest layers are blocks on disk where all together would take more than ``cap`` bytes.

    Args:
        layers: whose inputs are summed.
        folder: for the blocks on disk; None keeps all in memory.
        cap: bytes of memory.
        device: where the means are wanted; what is on disk is summed on the CPU.
    """

    def __init__(self, layers: Sequence[LayerSpec], folder: Path | None, cap: int, device: torch.device) -> None:
        self.device = device
        self.totals: dict[str, Tensor] = {}
        self._files: dict[str, mmap.mmap] = {}
        self.counts = dict.fromkeys((layer.name for layer in layers), 0)
        for layer in sorted(layers, key=_size):
            shape = layer.gram_shape
            cap -= 4 * _size(layer)
            if cap >= 0 or folder is None:
                self.totals[layer.name] = torch.zeros(shape, device=device)
            else:
                folder.mkdir(parents=True, exist_ok=True)
                path = folder / f"{len(self.totals)}.gram"  # names may be long, and have slashes
                path.unlink(missing_ok=True)
                self._files[layer.name] = file = _mapped(path, 4 * _size(layer))
                self.totals[layer.name] = torch.frombuffer(file, dtype=torch.float32).view(shape)

    def add(self, name: str, module: nn.Module, x: Tensor) -> None:
        """Add the input ``x`` of one call, a few examples at a time."""
        total = self.totals[name]
        for (rows,) in row_chunks(module, x):
            self.counts[name] += rows.shape[1]
            gram(rows.to(total.device), total)
        self._leave(name)

    def mean(self, name: str) -> Tensor:
        """E[xxᵀ], ``layer.gram_shape``, on the device."""
        found = self.totals[name].to(self.device) / max(1, self.counts[name])
        self._leave(name)
        return found

    def _leave(self, name: str) -> None:
        """Let go of the pages of a file that were read or written, which else count as memory of this process until it ends."""
        if name in self._files and hasattr(mmap, "MADV_DONTNEED"):
            self._files[name].madvise(mmap.MADV_DONTNEED)


def on_disk(layers: Sequence[LayerSpec], sketches: int, cap: int) -> int:
    """Bytes of the disk that :func:`collect` takes at most for ``layers``, with so many ``sketches`` and ``cap`` bytes of memory."""
    grams, part = 4 * sum(map(_size, layers)), 2 * sum(layer.numel for layer in layers)
    beyond = sketches * part - cap
    return (2 * grams if grams > cap // 2 else 0) + (beyond + part if beyond > 0 else 0)


def groups(layers: Sequence[LayerSpec], sketches: int, cap: int, disk: int) -> list[list[LayerSpec]]:
    """``layers`` in groups, in order, each of which takes at most ``disk`` bytes there; a layer that takes more is alone."""
    found = list[list[LayerSpec]]()
    for layer in layers:
        if not found or on_disk([*found[-1], layer], sketches, cap) > disk:
            found.append([])
        found[-1].append(layer)
    return found


def _mapped(path: Path, size: int) -> mmap.mmap:
    """A new file of ``size`` zeros as memory that is shared with it."""
    with path.open("w+b") as file:
        file.truncate(size)
        return mmap.mmap(file.fileno(), size)


def _size(layer: LayerSpec) -> int:
    return prod(layer.gram_shape)


class Statistics:
    """What :func:`collect` found; a layer's statistics are put together when they are asked for."""

    def __init__(self, fit: Grams, check: Grams, sketches: Sketches) -> None:
        self._fit, self._check, self._sketches = fit, check, sketches

    def __getitem__(self, name: str) -> LayerStatistics:
        return LayerStatistics(self._fit.mean(name), self._check.mean(name), self._sketches.of(name))


def collect(
    model: nn.Module, layers: Sequence[LayerSpec], batches: Iterable[Inputs], check: Iterable[Inputs],
    folder: Path | None = None, cap: int = STATISTICS_CAP, seed: int = 0, advance: Callable[[], None] = lambda: None,
    task: Task | None = None,
) -> Statistics:
    """Run ``model`` forward over ``batches``, forward and backward over ``check``; it is left as it was.

    Args:
        model: in eval mode.
        layers: whose statistics are wanted.
        batches: inputs that the fits will see.
        check: inputs that they will not see; each batch makes one sketch, so that many small ones tell most.
        folder: where Gram matrices and sketches beyond ``cap`` bytes each go; None keeps all in memory.
        cap: bytes of memory.
        seed: of the sketches.
        advance: called after each batch.
        task: of the model; classification if None.
    """
    device = next(iter(model.parameters())).device
    fit, other = (Grams(layers, folder / part if folder else None, cap // 2, device) for part in ("fit", "check"))
    sketches = Sketches(layers, folder / "sketches" if folder else None, cap, seed, task, device)
    weights = [model.get_parameter(f"{layer.name}.weight") for layer in layers]
    with _watched(model, layers, fit), torch.no_grad():
        for x in batches:
            forward(model, x)
            advance()
    with _watched(model, layers, other), _differentiable(weights), torch.enable_grad():
        for x in check:
            sketches.add(sketches.task.run(model, x), weights)
            advance()
    return Statistics(fit, other, sketches)


def takes_gradient(model: nn.Module, layers: Sequence[LayerSpec], task: Task, x: Inputs) -> bool:
    """Whether the outputs for ``x`` depend on the layers' weights in a way that torch follows; without, there are no sketches."""
    with _evaluated(model), _differentiable([model.get_parameter(f"{layer.name}.weight") for layer in layers]), torch.enable_grad():
        return any(t.requires_grad for t in floats(task.run(model, x)))


@contextmanager
def _watched(model: nn.Module, layers: Sequence[LayerSpec], grams: Grams) -> Iterator[None]:
    """Eval mode, and hooks that sum every layer's inputs into ``grams``; both are undone afterwards."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Tensor], None]:
        def add(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _: Tensor) -> None:
            x = first_tensor(args, kwargs)
            assert x is not None
            grams.add(name, module, x.detach())

        return add

    handles = [
        model.get_submodule(n).register_forward_hook(hook(spec.name), with_kwargs=True) for spec in layers for n in spec.names
    ]
    try:
        with _evaluated(model):
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _evaluated(model: nn.Module) -> Iterator[None]:
    modes = {m: m.training for m in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _differentiable(weights: Sequence[Tensor]) -> Iterator[None]:
    before = [w.requires_grad for w in weights]
    for w in weights:
        w.requires_grad_(True)
    try:
        yield
    finally:
        for w, required in zip(weights, before, strict=True):
            w.requires_grad_(required)
