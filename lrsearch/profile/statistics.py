"""One pass over the calibration data: the input statistics and output sensitivities of all layers."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lrsearch.compress.matricize import gram, input_rows
from lrsearch.spec.layer import LayerSpec


@dataclass
class LayerStatistics:
    """Statistics of one layer.

    Attributes:
        gram: ``(groups, columns, columns)``, E[xxᵀ] over examples and positions.
        curvature: ``(rows,)``, how much a squared error at each output raises the KL
            divergence: ½ Σ_positions E[g²], g the gradient of the log-likelihood of a label
            drawn from the model itself (the diagonal of the output-side Fisher factor of
            K-FAC, Martens & Grosse 2015).
    """

    gram: Tensor
    curvature: Tensor


def collect(model: nn.Module, layers: Sequence[LayerSpec], batches: Iterable[Tensor], seed: int = 0) -> dict[str, LayerStatistics]:
    """Run ``model`` forward and backward over ``batches``; parameters and modes are left alone."""
    generator = torch.Generator().manual_seed(seed)
    parameters = [p for p in model.parameters() if p.requires_grad]
    weights = {id(model.get_parameter(f"{spec.name}.weight")) for spec in layers}
    free = [p for p in parameters if id(p) not in weights]
    modules = {spec.name: model.get_submodule(spec.name) for spec in layers}
    grams: dict[str, Tensor] = {}
    curvatures: dict[str, Tensor] = {}
    counts = dict.fromkeys(modules, 0)
    examples = 0

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def forward(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            rows = input_rows(module, inputs[0].detach())
            counts[name] += rows.shape[1]
            grams[name] = grams.get(name, 0) + gram(rows)

            def backward(g: Tensor) -> None:
                axis = -1 if isinstance(module, nn.Linear) else -3
                square = g.detach().float().square().movedim(axis, 0).flatten(1).sum(1)
                curvatures[name] = curvatures.get(name, 0) + square

            if output.requires_grad:
                output.register_hook(backward)  # type: ignore[no-untyped-call]

        return forward

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    modes = {m: m.training for m in model.modules()}
    model.eval()
    try:
        for x in batches:
            with torch.enable_grad():
                x = x.detach()
                sources = [x.requires_grad_(), *free] if x.is_floating_point() else parameters
                log_p = model(x).float().log_softmax(-1)
                labels = torch.multinomial(log_p.detach().exp().cpu(), 1, generator=generator).to(x.device)
                if log_p.requires_grad:
                    torch.autograd.grad(log_p.gather(-1, labels).sum(), sources, allow_unused=True)
            examples += len(x)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    return {
        spec.name: LayerStatistics(
            grams[spec.name] / counts[spec.name],
            curvatures.get(spec.name, grams[spec.name].new_zeros(spec.rows)) / (2 * examples),
        )
        for spec in layers
    }
