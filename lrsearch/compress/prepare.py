"""What is done to a copy of a model before it is compressed, so that more of its layers can be.

The model that :func:`prepare` returns is the dense model of all that follows: inventory, profile,
search, and the base that a saved model is loaded on. It computes what the given model computes.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame, ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from lrsearch.compress.attention import open_attention, open_encoder, opens, opens_encoder
from lrsearch.compress.parametrised import copied, fold, folds, holds_computed
from lrsearch.compress.split import split

_STANDARDISED = {conv.forward for conv in (StdConv2d, StdConv2dSame, ScaledStdConv2d, ScaledStdConv2dSame)}


def prepare(model: nn.Module, patterns: Iterable[str] = ()) -> nn.Module:
    """A copy of ``model`` with more layers to compress; ``model`` itself if there is nothing to do.

    - Weight norm, spectral norm and pruning masks become plain weights.
    - Weight-standardised convolutions become plain ones with the standardised weight.
    - The projections of ``nn.MultiheadAttention`` become layers, see :class:`lrsearch.compress.attention.Attention`.
    - Attention that multiplies with the weight of its ``qkv`` layer calls it instead (BEiT, EVA, Swin v2).
    - Transformers' ``Conv1D`` (GPT-2) becomes the Linear that it amounts to.
    - Weights of layers that share memory become one parameter.
    - Tensors that the model keeps of its last forward pass become constants, as torch copies no others.
    - Linear layers that match ``patterns`` are split, see :func:`lrsearch.compress.split.split`.

    Raises:
        ConfigError: a pattern matches no layer, or one that cannot be split.
    """
    steps = (
        (folds, fold), (_standardised, _make_plain), (opens_encoder, open_encoder), (opens, open_attention), (_reads_qkv, _call_qkv),
        (_transposed_linear, _make_linear),
    )
    tied = _tied_memory(model)
    if tied or holds_computed(model) or any(applies(m) for m in model.modules() for applies, _ in steps):
        model = copied(model)
        for names in tied:
            first = model.get_parameter(f"{names[0]}.weight")
            for name in names[1:]:
                model.get_submodule(name).register_parameter("weight", first)
        for applies, change in steps:
            for module in [m for m in model.modules() if applies(m)]:
                change(module)
    return split(model, patterns)


def prepared_copy(model: nn.Module, patterns: Iterable[str] = ()) -> nn.Module:
    """:func:`prepare`, and a copy in any case: some models change themselves as they run."""
    made = prepare(model, patterns)
    return copied(made) if made is model else made


def _tied_memory(model: nn.Module) -> list[list[str]]:
    """Names of Linear layers whose weights are several parameters over the same memory, as ``.data`` makes them."""
    found: dict[tuple[int, tuple[int, ...], tuple[int, ...]], dict[int, str]] = defaultdict(dict)
    for name, module in model.named_modules():
        weight = module._parameters.get("weight") if isinstance(module, nn.Linear) else None
        if weight is not None and not is_lazy(weight) and weight.numel():
            found[weight.data_ptr(), tuple(weight.shape), weight.stride()].setdefault(id(weight), name)
    return [list(names.values()) for (address, *_), names in found.items() if len(names) > 1 and address]


def _transposed_linear(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"


def _make_linear(module: Any) -> None:
    module.weight = nn.Parameter(module.weight.detach().T.contiguous(), module.weight.requires_grad)
    module.out_features, module.in_features = module.weight.shape
    module.__class__ = nn.Linear


def _call_qkv(module: nn.Module) -> None:
    module.__dict__["qkv_bias_separate"] = True


def _reads_qkv(module: nn.Module) -> bool:
    return getattr(module, "qkv_bias_separate", None) is False and getattr(module, "q_bias", None) is not None


def _standardised(module: nn.Module) -> bool:
    return type(module).forward in _STANDARDISED and not parametrize.is_parametrized(module)


def _make_plain(conv: Any) -> None:
    """Turn a weight-standardised convolution into the plain one that it amounts to."""
    conv.weight = nn.Parameter(_standardised_weight(conv), conv.weight.requires_grad)
    conv._parameters.pop("gain", None)
    conv.__class__ = Conv2dSame if getattr(conv, "same_pad", False) else nn.Conv2d


@torch.no_grad()
def _standardised_weight(conv: Any) -> Tensor:
    """``(out, in/groups, kh, kw)``: mean 0 and variance 1 per output, times the gain, as :mod:`timm.layers.std_conv` has it."""
    gain = (conv.gain * conv.scale).view(-1) if hasattr(conv, "gain") else None
    rows = conv.weight.reshape(1, conv.out_channels, -1)
    return F.batch_norm(rows, None, None, gain, training=True, momentum=0.0, eps=conv.eps).reshape_as(conv.weight)
