"""A short distillation finetune in effective-weight form."""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrsearch.compress.apply import write_effective
from lrsearch.compress.fit import Decomposition
from lrsearch.errors import ScoreError
from lrsearch.proxy.calibrate import norms
from lrsearch.proxy.data import Examples
from lrsearch.spec.config import FinetuneConfig


def batch_order(n: int, config: FinetuneConfig) -> Tensor:
    """``(steps, batch)`` indices below ``n``: whole epochs in an order fixed by the seed."""
    generator = torch.Generator().manual_seed(config.seed)
    need = config.steps * config.batch
    epochs = [torch.randperm(n, generator=generator) for _ in range(-(-need // n))]
    return torch.cat(epochs)[:need].view(config.steps, config.batch)


def finetune(
    model: nn.Module, fits: Mapping[str, Decomposition], train: Examples, reference: Tensor,
    config: FinetuneConfig, device: torch.device | str = "cpu",
) -> dict[str, Decomposition]:
    """Train factors, kept values and everything else of ``model`` towards the dense model's outputs.

    Each step computes W = L + S from the factors and runs the dense layer with it: one small
    matrix product instead of three layers. Masks are fixed.

    Args:
        model: holds the dense layers; its other parameters and, at the end, its effective
            weights are updated in place.
        fits: the layers' factors; not changed.
        train: the inputs.
        reference: the dense model's logits on ``train``, ``(n, classes)``.

    Returns:
        The trained factors.

    Raises:
        ScoreError: the loss is not finite.
    """
    leaves = {n: _leaves(f) for n, f in fits.items()}
    others = {n: p for n, p in model.named_parameters() if n.removesuffix(".weight") not in fits and p.requires_grad}
    parameters = [t for f in leaves.values() for t in (*f.factors, f.sparse)] + list(others.values())
    optimizer = torch.optim.SGD(parameters, config.learning_rate, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.5 * (1 + math.cos(math.pi * t / config.steps)))
    shapes = {n: model.get_parameter(f"{n}.weight").shape for n in fits}
    model.eval()
    for m in norms(model) if config.batchnorm == "free" else ():
        m.train()
    for step, index in enumerate(batch_order(len(train), config)):
        x, target = train.take(index).to(device), reference[index].to(device)
        weights = {f"{n}.weight": _masked(f).effective().view(shapes[n]) for n, f in leaves.items()}
        outputs = torch.func.functional_call(model, weights, (x,))
        loss = _distillation(outputs, target, config.temperature)
        if not bool(loss.isfinite()):
            raise ScoreError(
                "the finetune loss must be finite", value=float(loss.detach()), place=f"finetune step {step}",
                remedy="Lower proxy.finetune.learning_rate.",
            )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, config.clip)
        optimizer.step()
        schedule.step()
    model.eval()
    trained = {
        n: replace(f, factors=tuple(t.detach() for t in f.factors), sparse=(f.sparse * f.mask).detach())
        for n, f in leaves.items()
    }
    write_effective(model, trained)
    return trained


def _leaves(fit: Decomposition) -> Decomposition:
    """Trainable copies of the factors and of S."""
    factors = tuple(f.detach().clone().requires_grad_() for f in fit.factors)
    return replace(fit, factors=factors, sparse=fit.sparse.detach().clone().requires_grad_())


def _masked(fit: Decomposition) -> Decomposition:
    """No gradient reaches what S leaves out."""
    return replace(fit, sparse=fit.sparse * fit.mask)


def _distillation(outputs: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Hinton et al. 2015: T² · KL of the softened distributions, mean over the batch."""
    student, teacher = (outputs / temperature).log_softmax(-1), (target / temperature).log_softmax(-1)
    return F.kl_div(student, teacher, log_target=True, reduction="batchmean") * temperature**2
