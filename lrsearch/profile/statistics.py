"""One pass over the calibration data: the statistics of all layers that fits and predictions need."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from lrsearch.compress.matricize import gram, row_chunks, to_matrix
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.memory import memory_share
from lrsearch.task.base import Outputs, Task
from lrsearch.task.forward import Inputs, first_tensor, forward, tensors
from lrsearch.task.softmax import Classification

STATISTICS_CAP = memory_share(1, 6)  # bytes of memory for Gram matrices, and as many for sketches; the rest goes to disk
TEMPERATURE = 2.0  # of the softmax where sketches are taken
SKETCHES = 128  # batches of held-out examples, at least where there are as many; each makes one sketch
AT_ONCE = 8  # sketches that are float32 at a time, to multiply with; they are kept in bfloat16


@dataclass
class LayerStatistics:
    """Statistics of one layer.

    Attributes:
        gram: ``layer.gram_shape``, mostly ``(groups, columns, columns)``: E[xxᵀ] over examples and positions.
        check: the same over other examples, which tell what a fit is worth.
        sketches: ``(k, groups, rows, columns)``, bfloat16: gradients g of the output in random directions, so that the
            mean of ½⟨g, Δ⟩² is what a change Δ of the weight does to the output for those other examples; see
            :class:`Sketches`.
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
                self.totals[layer.name] = torch.from_file(str(path), shared=True, size=_size(layer)).view(shape)

    def add(self, name: str, module: nn.Module, x: Tensor) -> None:
        """Add the input ``x`` of one call, a few examples at a time."""
        total = self.totals[name]
        for (rows,) in row_chunks(module, x):
            self.counts[name] += rows.shape[1]
            gram(rows.to(total.device), total)

    def mean(self, name: str) -> Tensor:
        """E[xxᵀ], ``layer.gram_shape``, on the device."""
        return self.totals[name].to(self.device) / max(1, self.counts[name])


class Sketches:
    """Random projections of the output's Jacobian with respect to all weights, one per batch.

    The divergence of the output of a change Δ is ½ E[(JΔ)ᵀ H (JΔ)] to second order, J being the Jacobian of the outputs and H the
    Hessian of the task's divergence; of logits with softmax p it is diag p − p pᵀ (the Fisher information as a generalised
    Gauss-Newton matrix; Martens 2014, section 9). With a random v per example, E[v vᵀ] = H, that is ½ E⟨Jᵀv, Δ⟩²:
    one backward pass serves all layers and all changes, correlations between positions included. The v of
    different examples are independent, so the gradient of a batch's sum does for all its examples.
    p is taken at ``TEMPERATURE``, as models are surer of data they were trained on than of others.

    Args:
        layers: whose weights are meant.
        folder: for gradients beyond ``cap`` bytes; None keeps all in memory.
        cap: bytes of memory.
        seed: of the directions.
        task: says what a change of the outputs amounts to; classification if None.
        device: where they are wanted.
    """

    def __init__(
        self, layers: Sequence[LayerSpec], folder: Path | None, cap: int, seed: int, task: Task | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.device, self.task = device, task or Classification()
        self.layers, self.folder, self.cap, self.examples = {layer.name: layer for layer in layers}, folder, cap, 0
        self._parts: list[dict[str, Tensor] | Path] = []
        self._generator = torch.Generator().manual_seed(seed)

    def add(self, outputs: Outputs, weights: Sequence[Tensor]) -> None:
        """Keep one gradient of ``outputs``, as the task has them, with respect to each of ``weights``, in the layers' order."""
        pairs = [(t, v) for t, v in zip(_floats(outputs), self._directions(outputs), strict=True) if t.requires_grad]
        if not weights or not pairs:
            return
        gradients = torch.autograd.grad(torch.stack([(t * v).sum() for t, v in pairs]).sum(), weights, allow_unused=True)
        part = {n: torch.zeros(()) if g is None else g.bfloat16() for n, g in zip(self.layers, gradients, strict=True)}
        self.examples += len(pairs[0][0])
        self.cap -= sum(2 * g.numel() for g in part.values())
        self._parts.append(part if self.cap >= 0 or self.folder is None else self._written(part, self.folder))

    def _directions(self, outputs: Outputs) -> list[Tensor]:
        """Random v for each of the tensors in ``outputs``, as :meth:`lrsearch.task.base.Task.projections` draws them."""
        known = tree_map_only(Tensor, Tensor.detach, outputs)
        return _floats(self.task.projections(known, TEMPERATURE, self._generator))

    def _written(self, part: dict[str, Tensor], folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{len(self._parts)}.safetensors"
        save_file({name: gradient.contiguous().cpu() for name, gradient in part.items()}, path)
        return path

    def of(self, name: str) -> Tensor:
        """``(batches, groups, rows, columns)``, each as if of one example, on the device."""
        shape = self.layers[name].matrix_shape
        whole, kept = torch.zeros(len(self._parts), *shape, dtype=torch.bfloat16, device=self.device), 0
        for gradient in (_read(part, name) for part in self._parts):  # one at a time: together they are the largest thing there is
            if gradient.dim():
                whole[kept] = to_matrix(gradient, self.layers[name]).reshape(shape)
                kept += 1
        return whole[:kept].mul_((kept / max(1, self.examples)) ** 0.5)


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


def _floats(outputs: Outputs) -> list[Tensor]:
    return [t for t in tensors(outputs) if t.is_floating_point()]


def _read(part: dict[str, Tensor] | Path, name: str) -> Tensor:
    if isinstance(part, dict):
        return part[name]
    with safe_open(part, "pt") as file:
        found: Tensor = file.get_tensor(name)
        return found


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
        return any(t.requires_grad for t in _floats(task.run(model, x)))


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
