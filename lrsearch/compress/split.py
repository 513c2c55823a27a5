"""Fused query-key-value layers as three layers, so that each gets a plan of its own."""

import copy
from collections.abc import Iterable
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from lrsearch.errors import ConfigError

PARTS = ("q", "k", "v")  # names of the layers that a fused one becomes, in the order of its rows


class SplitLinear(nn.Module):
    """``q``, ``k`` and ``v`` in place of one Linear: the same output, (..., in) → (..., out)."""

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        rows = fused.out_features // len(PARTS)
        for i, part in enumerate(PARTS):
            own = slice(i * rows, (i + 1) * rows)
            layer = nn.Linear(fused.in_features, rows, fused.bias is not None, device="meta")
            layer.weight = nn.Parameter(fused.weight.detach()[own].clone(), fused.weight.requires_grad)
            if fused.bias is not None:
                layer.bias = nn.Parameter(fused.bias.detach()[own].clone(), fused.bias.requires_grad)
            self.add_module(part, layer)
        self.train(fused.training)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.get_submodule(part)(x) for part in PARTS], -1)


def split(model: nn.Module, patterns: Iterable[str]) -> nn.Module:
    """A copy of ``model`` whose Linear layers matching ``patterns`` are split; ``model`` itself if there are none.

    Raises:
        ConfigError: a pattern matches no layer, or one that is no Linear with rows in three equal parts.
    """
    patterns, names = tuple(patterns), [n for n, _ in model.named_modules() if n]
    if not patterns:
        return model
    remedy = "Name fused query-key-value layers, for example '*.attn.qkv'."
    found = [n for n in names if any(fnmatchcase(n, p) for p in patterns)]
    for pattern in patterns:
        if not any(fnmatchcase(n, pattern) for n in found):
            raise ConfigError("every split pattern must match a layer", value=pattern, place="space.split", remedy=remedy)
    model = copy.deepcopy(model)
    for name in found:
        layer = model.get_submodule(name)
        if not isinstance(layer, nn.Linear) or type(layer).forward is not nn.Linear.forward or layer.out_features % len(PARTS):
            raise ConfigError("only a Linear with rows in three equal parts can be split", value=type(layer).__name__,
                              place=f"space.split: {name}", remedy=remedy)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, SplitLinear(layer))
    return model


def join(model: nn.Module) -> None:
    """Undo :func:`split`, in place: one Linear, with the values of the three."""
    for name, module in [(n, m) for n, m in model.named_modules() if isinstance(m, SplitLinear)]:
        parts: list[nn.Linear] = [module.get_submodule(part) for part in PARTS]  # type: ignore[misc]
        first = parts[0]
        fused = nn.Linear(first.in_features, len(PARTS) * first.out_features, first.bias is not None, device="meta")
        fused.weight = nn.Parameter(torch.cat([p.weight.detach() for p in parts]), first.weight.requires_grad)
        if first.bias is not None:
            fused.bias = nn.Parameter(torch.cat([p.bias.detach() for p in parts]), first.bias.requires_grad)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, fused.train(module.training))
