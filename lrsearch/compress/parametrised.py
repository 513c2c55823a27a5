"""Weights that are computed from others (weight norm, spectral norm, pruning masks) as plain weights."""

import copy
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrizations, parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._pytree import tree_leaves

LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
_NORMS = (parametrizations._WeightNorm, parametrizations._SpectralNorm, parametrizations._Orthogonal)


def folds(module: nn.Module) -> bool:
    """Whether :func:`fold` makes a weight of ``module`` plain."""
    return isinstance(module, LAYERS) and bool(_hooked(module) or _parametrised(module))


def fold(module: nn.Module) -> None:
    """Give ``module``, in place, the weight it has in eval mode as a parameter."""
    mode = module.training
    module.eval()
    for hook in _hooked(module):
        if isinstance(hook, WeightNorm):
            remove_weight_norm(module, hook.name)
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(module, hook.name)
        else:
            prune.remove(module, hook._tensor_name)  # type: ignore[no-untyped-call]
    names = _parametrised(module)
    plain = {name: nn.Parameter(getattr(module, name).detach().clone(), _trained(module)) for name in names}
    if plain:  # torch's own remove_parametrizations would change the class, which the model that was copied has too
        module.__class__ = type(module).__bases__[0]
        del module.parametrizations
        for name, value in plain.items():
            module.register_parameter(name, value)
    module.train(mode)


def _trained(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parametrizations.parameters())  # type: ignore[union-attr]


def copied(model: nn.Module) -> nn.Module:
    """A deep copy, also of a model that holds tensors computed from its parameters, which torch refuses to copy.

    Parameters that share their values by ``data`` alone share them in the copy too.
    """
    made = copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in _computed(model)})
    first: dict[Any, str] = {}
    for name, own in model.named_parameters():
        address = 0 if is_lazy(own) or not own.numel() else own.data_ptr()
        key = (address, own.shape, own.stride(), own.dtype) if address else name
        if (known := first.setdefault(key, name)) != name:
            made.get_parameter(name).data = made.get_parameter(known).data
    return made


def holds_computed(model: nn.Module) -> bool:
    """Whether ``model`` holds tensors that torch refuses to copy."""
    return bool(_computed(model))


def _computed(model: nn.Module) -> list[Tensor]:
    held = [{k: v for k, v in vars(m).items() if k not in ("_parameters", "_buffers", "_modules")} for m in model.modules()]
    return [v for v in tree_leaves(held) if isinstance(v, Tensor) and not v.is_leaf]


def _hooked(module: nn.Module) -> list[WeightNorm | SpectralNorm | prune.BasePruningMethod]:
    known = (WeightNorm, SpectralNorm, prune.BasePruningMethod)
    return [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, known)]


def _parametrised(module: nn.Module) -> list[str]:
    """Names of the parametrised tensors, if every parametrisation is a known function of parameters alone."""
    if not parametrize.is_parametrized(module):
        return []
    lists: Iterable[tuple[str, nn.Module]] = module.parametrizations.items()  # type: ignore[union-attr, operator]
    known = {name: all(isinstance(p, _NORMS) for p in each.children()) for name, each in lists}
    return list(known) if all(known.values()) else []
