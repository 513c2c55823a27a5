"""A compressed model in the form that runtimes fuse best: plain layers one after another, BatchNorm folded away."""

import copy
from collections.abc import Collection

from torch import nn

from lrsearch.compress.matricize import Conv
from lrsearch.compress.modules import CompressedLayer, describe
from lrsearch.deploy.channel_flow import feeds, keep_outputs, last, topped
from lrsearch.deploy.fold_batchnorm import fold_batchnorm, replace
from lrsearch.deploy.plain_layers import Nothing, narrowed, plain
from lrsearch.spec.unread import drops_columns
from lrsearch.task.forward import Inputs


def deployed(model: nn.Module, sample: Inputs | None = None, merged: Collection[str] = ()) -> nn.Module:
    """A copy of ``model`` for a runtime, in eval mode, with the same outputs.

    Args:
        model: dense or compressed.
        sample: a batch that it accepts, by which BatchNorms are folded, and outputs left out that are only read by columns that a
            layer drops; they stay if None.
        merged: names of compressed layers that are to run as one dense layer, because that is faster.
    """
    return deployed_of(model, sample, merged)[0]


def deployed_of(model: nn.Module, sample: Inputs | None, merged: Collection[str]) -> tuple[nn.Module, list[CompressedLayer]]:
    """:func:`deployed`, and the compressed layers that it was made of, into which BatchNorms are folded."""
    model = copy.deepcopy(model).eval().requires_grad_(False)
    _widen(model)
    if sample is not None:
        fold_batchnorm(model, sample)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, CompressedLayer)}
    narrow = {n for n, m in layers.items() if n not in merged and drops_columns(m.plan)}
    fed = feeds(model, sample) if sample is not None and narrow else {}
    gone = {each for n in narrow & fed.keys() if layers[n].plan.zero for each in fed[n].layers}
    for name in gone:
        module = model.get_submodule(name)
        assert isinstance(module, CompressedLayer | nn.Linear | Conv)
        replace(model, module, Nothing(module))
    for name, layer in layers.items():
        replace(model, layer, plain(layer, name in merged))
    kept = {n: topped(m.index, m.spec.weight_shape[1]) for n, m in layers.items() if n in narrow & fed.keys() and m.index is not None}
    kept = {n: index for n, index in kept.items() if last(model.get_submodule(fed[n].producer))}
    for name, index in kept.items():
        replace(model, model.get_submodule(name), narrowed(layers[name], index))
    for name, index in kept.items():
        for each in (last(model.get_submodule(fed[name].producer)), *map(model.get_submodule, fed[name].between)):
            if isinstance(each, nn.Linear | Conv):
                keep_outputs(each, index)
    for name, layer in layers.items():
        describe(new := model.get_submodule(name), layer)
        if not hasattr(new, "weight"):  # models ask it for its type, or read it; it is no parameter of the module
            new.__dict__["weight"] = layer.weight
        new._forward_hooks.update(layer._forward_hooks)
        new._forward_pre_hooks.update(layer._forward_pre_hooks)
    return model.requires_grad_(False), list(layers.values())


def _widen(model: nn.Module) -> None:
    """Let all layers have all outputs, as they are left out anew once BatchNorms are folded; dense ones become dense again."""
    for layer in [m for m in model.modules() if isinstance(m, CompressedLayer) and m.outputs is not None]:
        layer.widen()
        if layer.plan.untouched:
            replace(model, layer, dense := plain(layer))
            dense._forward_hooks.update(layer._forward_hooks)
            dense._forward_pre_hooks.update(layer._forward_pre_hooks)
