"""One pass over the calibration data: the input statistics and output sensitivities of all layers."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lrsearch.compress.matricize import gram, row_chunks
from lrsearch.spec.layer import LayerSpec

MEMORY_CAP = 2 * 2**30


@dataclass
class LayerStatistics:
    """Statistics of one layer.

    Attributes:
        gram: ``(groups, columns, columns)``, E[xxᵀ] over examples and positions.
        check: the same over other examples, which tell what a fit is worth.
        curvature: ``(rows,)``, how much a squared error at each output raises the KL
            divergence: ½ Σ_positions E[g²], g the gradient of the log-likelihood of a label
            drawn from the model itself (the diagonal of the output-side Fisher factor of
            K-FAC, Martens & Grosse 2015).
    """

    gram: Tensor
    check: Tensor
    curvature: Tensor


class Grams:
    """Gram matrices of all layers, float32, summed as the data come.

    Those of the widest layers are blocks on disk where all together would take more than ``cap`` bytes.

    Args:
        layers: whose inputs are summed.
        folder: for the blocks on disk; None keeps all in memory.
        cap: bytes of memory.
    """

    def __init__(self, layers: Sequence[LayerSpec], folder: Path | None, cap: int, device: torch.device) -> None:
        self.totals: dict[str, Tensor] = {}
        self.counts = dict.fromkeys((layer.name for layer in layers), 0)
        for layer in sorted(layers, key=_size):
            shape = (layer.groups, layer.columns, layer.columns)
            cap -= 4 * _size(layer)
            if cap >= 0 or folder is None:
                self.totals[layer.name] = torch.zeros(shape, device=device)
            else:
                folder.mkdir(parents=True, exist_ok=True)
                path = folder / f"{layer.name}.gram"
                path.unlink(missing_ok=True)
                self.totals[layer.name] = torch.from_file(str(path), shared=True, size=_size(layer)).view(shape)

    def add(self, name: str, module: nn.Module, x: Tensor) -> None:
        """Add the input ``x`` of one call, a few examples at a time."""
        total = self.totals[name]
        for (rows,) in row_chunks(module, x):
            self.counts[name] += rows.shape[1]
            gram(rows.to(total.device), total)

    def mean(self, name: str) -> Tensor:
        """E[xxᵀ], ``(groups, columns, columns)``."""
        return self.totals.pop(name) / max(1, self.counts[name])


def _size(layer: LayerSpec) -> int:
    return layer.groups * layer.columns**2


def collect(
    model: nn.Module, layers: Sequence[LayerSpec], batches: Iterable[Tensor], check: Iterable[Tensor],
    folder: Path | None = None, cap: int = MEMORY_CAP, seed: int = 0, advance: Callable[[], None] = lambda: None,
) -> dict[str, LayerStatistics]:
    """Run ``model`` forward and backward over ``batches``, forward over ``check``; it is left as it was.

    Args:
        model: returns logits ``(n, classes)``.
        layers: whose statistics are wanted.
        batches: inputs that the fits will see.
        check: inputs that they will not see.
        folder: where Gram matrices beyond ``cap`` bytes go; None keeps all in memory.
        cap: bytes of memory for all Gram matrices.
        seed: of the labels drawn from the model.
        advance: called after each batch.
    """
    device = next(iter(model.parameters())).device
    grams = {part: Grams(layers, folder / part if folder else None, cap // 2, device) for part in ("fit", "check")}
    with _frozen(model):
        with _watched(model, layers, grams["check"]), torch.no_grad():
            for x in check:
                model(x)
                advance()
        with _watched(model, layers, grams["fit"]) as curvatures:
            examples = _differentiate(model, layers, batches, seed, advance)
    return {
        spec.name: LayerStatistics(
            grams["fit"].mean(spec.name), grams["check"].mean(spec.name),
            curvatures.get(spec.name, torch.zeros(spec.rows, device=device)) / (2 * max(1, examples)),
        )
        for spec in layers
    }


def _differentiate(model: nn.Module, layers: Sequence[LayerSpec], batches: Iterable[Tensor], seed: int, advance: Callable[[], None]) -> int:
    """Backward passes from the log-likelihood of labels that the model itself draws; returns the number of examples."""
    generator = torch.Generator().manual_seed(seed)
    parameters = [p for p in model.parameters() if p.requires_grad]
    weights = {id(model.get_parameter(f"{spec.name}.weight")) for spec in layers}
    free = [p for p in parameters if id(p) not in weights]
    examples = 0
    for x in batches:
        with torch.enable_grad():
            x = x.detach()
            sources = [x.requires_grad_(), *free] if x.is_floating_point() else parameters
            log_p = model(x).float().log_softmax(-1)
            labels = torch.multinomial(log_p.detach().exp().cpu(), 1, generator=generator).to(x.device)
            if log_p.requires_grad:
                torch.autograd.grad(log_p.gather(-1, labels).sum(), sources, allow_unused=True)
        examples += len(x)
        advance()
    return examples


@contextmanager
def _watched(model: nn.Module, layers: Sequence[LayerSpec], grams: Grams) -> Iterator[dict[str, Tensor]]:
    """Hooks that sum every layer's inputs into ``grams`` and its squared output gradients into the dict yielded."""
    curvatures: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def forward(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            grams.add(name, module, inputs[0].detach())

            def backward(g: Tensor) -> None:
                axis = -1 if isinstance(module, nn.Linear) else -len(module.kernel_size) - 1  # type: ignore[arg-type]
                square = g.detach().float().square().movedim(axis, 0).flatten(1).sum(1)
                curvatures[name] = curvatures.get(name, 0) + square

            if output.requires_grad:
                output.register_hook(backward)  # type: ignore[no-untyped-call]

        return forward

    handles = [model.get_submodule(spec.name).register_forward_hook(hook(spec.name)) for spec in layers]
    try:
        yield curvatures
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Eval mode; the modes are put back afterwards."""
    modes = {m: m.training for m in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
