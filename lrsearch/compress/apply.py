"""A dense model and the fits of its layers → a compressed model; the dense one is not touched."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from lrsearch.compress.fit import Decomposition
from lrsearch.compress.matricize import to_weight
from lrsearch.compress.modules import CompressedLayer, compressed_layer
from lrsearch.compress.parametrised import copied
from lrsearch.compress.sparsify import contract
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.pattern import pattern
from lrsearch.spec.plan import LayerPlan, Plan
from lrsearch.spec.unread import followers


def compress(model: nn.Module, layers: Iterable[LayerSpec], plan: Plan, fits: Mapping[str, Decomposition] | None = None) -> nn.Module:
    """A copy of ``model`` whose layers named in ``plan`` are replaced by compressed ones.

    Args:
        model: the dense model; everything but the replaced weights is copied from it.
        layers: specs of at least the layers in ``plan``.
        plan: what each layer becomes.
        fits: factors by layer name, of all in ``plan`` and perhaps others; left zero, to be loaded, if None. With them outputs that
            nobody reads are left out.
    """
    specs = {spec.name: spec for spec in layers}
    replaced, read = copied(model), outputs_read(specs, plan, fits or {})
    for name in (*plan.layers, *(name for name in read if name not in plan.layers)):
        replace_layer(replaced, specs[name], plan[name], fits.get(name) if fits else None, read.get(name))
    return replaced


def outputs_read(layers: Mapping[str, LayerSpec], plan: Plan, fits: Mapping[str, Decomposition]) -> dict[str, Tensor]:
    """Layer name → its outputs that are read, ascending, of those whose others are left out."""
    readers = {name: reader for name, reader in followers(layers, plan).items() if reader in fits}
    return {name: channels_kept(fits[reader]) for name, reader in readers.items()}


def channels_kept(fit: Decomposition) -> Tensor:
    """The input channels, ascending, of which S has whole columns."""
    if fit.plan.zero:
        return torch.zeros(0, dtype=torch.int64, device=fit.mask.device)
    return contract(fit.mask, fit.layer, pattern(fit.plan.pattern)).nonzero()[:, 0]


def replace_layer(model: nn.Module, spec: LayerSpec, plan: LayerPlan, fit: Decomposition | None, outputs: Tensor | None = None) -> None:
    """Put compressed layers in place of all modules that have the weight of the layer ``spec``; its factors they share."""
    first: CompressedLayer | None = None
    for base in [model.get_submodule(name) for name in spec.names]:
        module = compressed_layer(base, spec, plan, fit, outputs)
        if first is not None:
            module.share(first)
        first = first or module
        module.train(base.training)
        module._forward_hooks, module._forward_pre_hooks = base._forward_hooks, base._forward_pre_hooks
        module._forward_hooks_with_kwargs, module._forward_pre_hooks_with_kwargs = (
            base._forward_hooks_with_kwargs, base._forward_pre_hooks_with_kwargs,
        )
        places = [(parent, child) for parent in model.modules() for child, m in parent._modules.items() if m is base]
        for parent, child in places:
            setattr(parent, child, module)


@torch.no_grad()
def write_effective(model: nn.Module, fits: Mapping[str, Decomposition]) -> None:
    """Overwrite the dense weights in ``model`` with L + S: the effective-weight form."""
    for name, fit in fits.items():
        weight = model.get_parameter(f"{name}.weight")
        weight.copy_(to_weight(fit.effective(), fit.layer))
