"""Sketches: what a change of any weight does to a network's outputs, from a few backward passes."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils._pytree import tree_map_only

from lrsearch.compress.matricize import to_matrix
from lrsearch.spec.layer import LayerSpec
from lrsearch.task.base import Outputs, Task
from lrsearch.task.forward import tensors
from lrsearch.task.softmax import Classification

TEMPERATURE = 2.0  # of the softmax where sketches are taken
SKETCHES = 128  # batches of held-out examples, at least where there are as many; each makes one sketch


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
        pairs = [(t, v) for t, v in zip(floats(outputs), self._directions(outputs), strict=True) if t.requires_grad]
        if not weights or not pairs:
            return
        gradients = _gradients(torch.stack([(t * v).sum() for t, v in pairs]).sum(), weights)
        part = {n: gradients.get(w, torch.zeros(())) for n, w in zip(self.layers, weights, strict=True)}
        self.examples += len(pairs[0][0])
        self.cap -= sum(2 * g.numel() for g in part.values())
        self._parts.append(part if self.cap >= 0 or self.folder is None else self._written(part, self.folder))

    def _directions(self, outputs: Outputs) -> list[Tensor]:
        """Random v for each of the tensors in ``outputs``, as :meth:`lrsearch.task.base.Task.projections` draws them."""
        known = tree_map_only(Tensor, Tensor.detach, outputs)
        return floats(self.task.projections(known, TEMPERATURE, self._generator))

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


def floats(outputs: Outputs) -> list[Tensor]:
    """The floating-point tensors in ``outputs``."""
    return [t for t in tensors(outputs) if t.is_floating_point()]


def _gradients(total: Tensor, weights: Sequence[Tensor]) -> dict[Tensor, Tensor]:
    """Weight → gradient of ``total`` in bfloat16, where it depends on it; each is in the weight's type only until the next is known."""
    found, before = dict[Tensor, Tensor](), [w.grad for w in weights]

    def keep(weight: Tensor) -> None:
        assert weight.grad is not None
        found[weight], weight.grad = weight.grad.bfloat16(), None

    hooks = [w.register_post_accumulate_grad_hook(keep) for w in weights]  # type: ignore[no-untyped-call]
    try:
        for w in weights:
            w.grad = None
        torch.autograd.backward(total, inputs=list(weights))
    finally:
        for w, hook, gradient in zip(weights, hooks, before, strict=True):
            hook.remove()
            w.grad = gradient
    return found


def _read(part: dict[str, Tensor] | Path, name: str) -> Tensor:
    if isinstance(part, dict):
        return part[name]
    with safe_open(part, "pt") as file:
        found: Tensor = file.get_tensor(name)
        return found
