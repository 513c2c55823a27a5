"""BatchNorm recalibration, kept only where held-out data say that it helps."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lrsearch.compress.inventory import inference
from lrsearch.proxy.data import Examples
from lrsearch.proxy.evaluate import divergence, predict


def norms(model: nn.Module) -> list[_BatchNorm]:
    """The BatchNorm layers of ``model`` that keep running statistics."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def recalibrate(model: nn.Module, batches: Iterator[Tensor]) -> None:
    """Replace the running statistics by their average over ``batches``; a single example has no variance and is skipped."""
    layers = norms(model)
    momenta = [m.momentum for m in layers]
    with inference(model):
        for m in layers:
            m.reset_running_stats()
            m.momentum = None
            m.train()
        for x in batches:
            if len(x) > 1:
                model(x)
    for m, momentum in zip(layers, momenta, strict=True):
        m.momentum = momentum


def recalibrate_if_better(
    model: nn.Module, fit: Examples, held_out: Examples, reference: Tensor, batch: int, device: torch.device | str
) -> bool:
    """Recalibrate on ``fit``; undo it unless the KL to ``reference`` on ``held_out`` falls.

    Args:
        reference: the dense model's logits on ``held_out``, ``(n, classes)``.

    Returns:
        Whether the new statistics were kept.
    """
    if not norms(model):
        return False
    before = divergence(predict(model, held_out, batch, device), reference).mean()
    old = [{k: v.clone() for k, v in m.named_buffers()} for m in norms(model)]
    recalibrate(model, (x for x, _ in fit.batches(batch, device)))
    after = divergence(predict(model, held_out, batch, device), reference).mean()
    if after < before:
        return True
    for m, buffers in zip(norms(model), old, strict=True):
        for key, value in buffers.items():
            m.get_buffer(key).copy_(value)
    return False
