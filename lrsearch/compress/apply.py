"""A dense model and the fits of its layers → a compressed model; the dense one is not touched."""

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from lrsearch.compress.fit import Decomposition
from lrsearch.compress.modules import compressed_layer
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.plan import Plan


def compress(model: nn.Module, layers: Iterable[LayerSpec], plan: Plan, fits: Mapping[str, Decomposition] | None = None) -> nn.Module:
    """A copy of ``model`` whose layers named in ``plan`` are replaced by compressed ones.

    Args:
        model: the dense model; everything but the replaced weights is copied from it.
        layers: specs of at least the layers in ``plan``.
        plan: what each layer becomes.
        fits: factors by layer name; left zero, to be loaded, if None.
    """
    specs = {spec.name: spec for spec in layers}
    replaced = copy.deepcopy(model)
    for name, layer_plan in plan.layers.items():
        base = replaced.get_submodule(name)
        module = compressed_layer(base, specs[name], layer_plan, fits[name] if fits else None)
        module.train(base.training)
        places = [(parent, child) for parent in replaced.modules() for child, m in parent._modules.items() if m is base]
        for parent, child in places:
            setattr(parent, child, module)
    return replaced


@torch.no_grad()
def write_effective(model: nn.Module, fits: Mapping[str, Decomposition]) -> None:
    """Overwrite the dense weights in ``model`` with L + S: the effective-weight form."""
    for name, fit in fits.items():
        weight = model.get_parameter(f"{name}.weight")
        weight.copy_(fit.effective().view_as(weight))
