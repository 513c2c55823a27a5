"""A dense model and the fits of its layers → a compressed model; the dense one is not touched."""

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from lrsearch.compress.fit import Decomposition
from lrsearch.compress.matricize import to_weight
from lrsearch.compress.modules import CompressedLayer, compressed_layer
from lrsearch.compress.parametrised import copied
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.plan import LayerPlan, Plan


def compress(model: nn.Module, layers: Iterable[LayerSpec], plan: Plan, fits: Mapping[str, Decomposition] | None = None) -> nn.Module:
    """A copy of ``model`` whose layers named in ``plan`` are replaced by compressed ones.

    Args:
        model: the dense model; everything but the replaced weights is copied from it.
        layers: specs of at least the layers in ``plan``.
        plan: what each layer becomes.
        fits: factors by layer name; left zero, to be loaded, if None.
    """
    specs = {spec.name: spec for spec in layers}
    replaced = copied(model)
    for name, layer_plan in plan.layers.items():
        replace_layer(replaced, specs[name], layer_plan, fits[name] if fits else None)
    return replaced


def replace_layer(model: nn.Module, spec: LayerSpec, plan: LayerPlan, fit: Decomposition | None) -> None:
    """Put compressed layers in place of all modules that have the weight of the layer ``spec``; its factors they share."""
    first: CompressedLayer | None = None
    for base in [model.get_submodule(name) for name in spec.names]:
        module = compressed_layer(base, spec, plan, fit)
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
