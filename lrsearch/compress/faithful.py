"""Whether compressed layers compute what a model computes with their effective weights: found by trying."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from lrsearch.compress.apply import replace_layer
from lrsearch.compress.fit import Decomposition
from lrsearch.compress.inventory import Inventory
from lrsearch.compress.matricize import to_matrix
from lrsearch.compress.parametrised import copied
from lrsearch.errors import ModelError
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.memory import give_back
from lrsearch.spec.plan import LayerPlan
from lrsearch.task.forward import Inputs, forward, inference, tensors

REASON = "it is computed other than plainly: with its weight changed, the model does not compute what the change says"
TOLERANCE, CHANGE = 1e-3, 0.2  # of the outputs' norm; of each weight's


def plain_layers(model: nn.Module, found: Inventory, sample: Inputs) -> Inventory:
    """``found`` without the layers that are computed other than plainly.

    Such are layers whose ``forward`` is patched, that a loop over the model looks for by their type, whose weight the model
    changes before it uses it, and the like. Every weight is changed a little; then the outputs of a copy with compressed layers
    are compared with those of a copy with the changed weights. Only if they differ are layers tried apart, by bisection.

    Args:
        model: prepared; left as it was.
        found: its inventory.
        sample: a batch that it accepts.
    """
    unfaithful = unfaithful_layers(model, found.layers, sample)
    return found.without({layer.name: REASON for layer in unfaithful}) if unfaithful else found


def unfaithful_layers(model: nn.Module, layers: Sequence[LayerSpec], sample: Inputs) -> list[LayerSpec]:
    """The layers whose compressed form changes outputs by more than ``TOLERANCE``."""
    found, waiting = list[LayerSpec](), [list(layers)]
    while waiting:
        some = waiting.pop()
        if not some or not _differ(model, some, sample):
            continue
        if len(some) == 1:
            found += some
        else:
            half = len(some) // 2
            waiting += [some[half:], some[:half]]  # the first half is looked at next
    give_back()
    return found


def _differ(model: nn.Module, layers: Sequence[LayerSpec], sample: Inputs) -> bool:
    """Whether compressed ``layers`` change the outputs of ``model``, all weights of them being changed; one copy of it at a time."""
    expected = _outputs(_with_changes(model, layers, compressed=False), sample)
    small = _with_changes(model, layers, compressed=True)
    try:
        return not _near(_outputs(small, sample), expected)
    except Exception:  # whatever a model does with a layer that is not of the type it knows
        return True


@torch.no_grad()
def _with_changes(model: nn.Module, layers: Sequence[LayerSpec], compressed: bool) -> nn.Module:
    """A copy of ``model`` in which the weights of ``layers`` are changed, in compressed layers or where they are."""
    made = copied(model)
    for layer in layers:
        weight = _changed(model.get_submodule(layer.name))
        if compressed:
            replace_layer(made, layer, LayerPlan(), _whole(weight, layer))
        else:
            made.get_parameter(f"{layer.name}.weight").copy_(weight)
    return made


def refuse_unfaithful(small: nn.Module, effective: nn.Module, layers: Sequence[LayerSpec], sample: Inputs, place: str) -> None:
    """Check that ``small`` returns for ``sample`` what ``effective`` does, to within ``TOLERANCE``.

    What is less accurate than that by rounding alone, as in 16 bits, is judged again in float64.

    Args:
        small: a compressed model, on the device of ``sample``.
        effective: the same with its weights L + S in dense layers; left as it was.
        layers: the compressed ones.

    Raises:
        ModelError: it returns something else.
    """
    effective = copied(effective)
    if _near(_outputs(small, sample), _outputs(effective, sample)) or _near_in_float64(small, effective, sample):
        return
    blamed = [layer.name for layer in unfaithful_layers(effective, layers, sample)]
    raise ModelError(
        "the compressed model must compute what its weights L + S compute", value=", ".join(blamed) or "no layer alone is the cause",
        place=place, remedy="Exclude layers whose weights the model uses otherwise than by calling them, as exclude: [NAME] in a rule.",
    )


def _near_in_float64(small: nn.Module, effective: nn.Module, sample: Inputs) -> bool:
    wide = tree_map_only(Tensor, lambda t: t.double() if t.is_floating_point() else t, sample)
    try:
        return _near(_outputs(copied(small).double(), wide), _outputs(copied(effective).double(), wide))
    except (RuntimeError, TypeError):  # a device, or a model, that knows no float64
        return False


@torch.no_grad()
def _changed(module: nn.Module) -> Tensor:
    """Its weight and noise of ``CHANGE`` times its size, in its own type."""
    weight = module.get_parameter("weight")
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)).to(weight.device, torch.float32)
    size = weight.float().norm() / max(1, weight.numel()) ** 0.5
    changed: Tensor = (weight + CHANGE * size * noise).to(weight.dtype)
    return changed


def _whole(weight: Tensor, layer: LayerSpec) -> Decomposition:
    matrix = to_matrix(weight, layer)
    return Decomposition(layer, LayerPlan(), (), matrix, torch.ones_like(matrix, dtype=torch.bool))


def _outputs(model: nn.Module, sample: Inputs) -> list[Tensor]:
    """All tensors that ``model`` returns, whatever is random in it being the same at each call."""
    with torch.random.fork_rng(), inference(model):
        torch.manual_seed(0)
        outputs = forward(model, sample)
    return tensors(outputs) or tensors(vars(outputs) if hasattr(outputs, "__dict__") else outputs)


def _near(ours: list[Tensor], expected: list[Tensor]) -> bool:
    if [t.shape for t in ours] != [t.shape for t in expected]:
        return False
    for a, b in zip(ours, expected, strict=True):
        if not b.is_floating_point():
            continue
        tolerance = max(TOLERANCE, 16 * torch.finfo(b.dtype).eps)
        a, b = a.double().nan_to_num(), b.double().nan_to_num()
        if float((a - b).norm()) > tolerance * float(b.norm()) + 1e-12:
            return False
    return True
