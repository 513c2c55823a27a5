"""What each layer of a model may become: what the space offers, and whole blocks may be skipped."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from lrsearch.compress.inventory import Inventory
from lrsearch.deploy.channel_flow import fed_layers, with_readers
from lrsearch.deploy.deployed import deployed
from lrsearch.latency.whole_models import Menus
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.plan import LayerPlan
from lrsearch.spec.space import Space
from lrsearch.spec.unread import drops_columns
from lrsearch.task.forward import Inputs, examples_in, forward, inference, output_tensors

log = logging.getLogger("lrsearch")
NOTHING = LayerPlan(density=0.0)
ALIKE = 1e-4  # share of how far the dense model's outputs are apart from example to example; rounding leaves far less


def offered(
    model: nn.Module, found: Inventory, space: Space, counted: Collection[str], sample: Inputs,
) -> tuple[Inventory, dict[str, list[LayerPlan]]]:
    """``found``, whose layers know the one that alone reads their outputs, and the choices of each.

    A layer that may drop columns of what feeds it alone may drop all of them too, if a residual stream goes around them: then nothing is
    left of either but a bias, and the block is skipped. Without such a stream nothing of the input would reach the outputs.

    Args:
        model: prepared.
        counted: metrics; see :meth:`Space.menus`.
        sample: a batch that ``model`` accepts, of different examples.
    """
    menus = space.menus(found.layers, found.refused, counted)
    layers = _with_readers(model, found.layers, menus, sample)
    readers = {layer.read_by for layer in layers if layer.read_by}
    dense = _apart(model, sample) if readers else {}
    skippable = {name for name in readers if _skippable(model, name, sample, dense)}
    menus = {name: [*menu, NOTHING] if name in skippable else list(menu) for name, menu in menus.items()}
    return replace(found, layers=layers), menus


def _with_readers(model: nn.Module, layers: Sequence[LayerSpec], menus: Menus, sample: Inputs) -> tuple[LayerSpec, ...]:
    """``layers``, each of which knows the one that alone reads its outputs, where columns of that are a choice."""
    if not any(drops_columns(choice) for menu in menus.values() for choice in menu):
        return tuple(layers)
    try:
        return with_readers(layers, fed_layers(deployed(model, sample), menus, sample))
    except Exception as error:  # of the model's own code, which may refuse to be copied or followed
        log.info("which layers feed another alone is not known: %s", " ".join(str(error).split()) or type(error).__name__)
        return tuple(layers)


def _skippable(model: nn.Module, name: str, sample: Inputs, dense: Mapping[str, float]) -> bool:
    """Whether outputs still differ from example to example where layer ``name`` is zeros, as those of the ``dense`` model do; not if the
    model fails then."""
    hook = model.get_submodule(name).register_forward_hook(lambda _module, _args, y: torch.zeros_like(y))
    try:
        without = _apart(model, sample)
    except Exception as error:  # of the model's own code, that such values are none that it takes
        log.info("%s is not skipped: %s", name, " ".join(str(error).split()) or type(error).__name__)
        return False
    finally:
        hook.remove()
    return any(without[key] > ALIKE * far for key, far in dense.items() if key in without)


def _apart(model: nn.Module, sample: Inputs) -> dict[str, float]:
    """Output → how far its examples are from their mean, at most."""
    with inference(model):
        found = output_tensors(forward(model, sample))
    batched = {key: t.float() for key, t in found.items() if t.dim() and len(t) == examples_in(sample)}
    return {key: float((t - t.mean(0)).abs().amax()) for key, t in batched.items() if t.numel()}
