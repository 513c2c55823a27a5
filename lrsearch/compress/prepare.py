"""What is done to a copy of a model before it is compressed, so that more of its layers can be.

The model that :func:`prepare` returns is the dense model of all that follows: inventory, profile,
search, and the base that a saved model is loaded on. It computes what the given model computes.
"""

import copy
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame, ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lrsearch.compress.split import split

_STANDARDISED = {conv.forward for conv in (StdConv2d, StdConv2dSame, ScaledStdConv2d, ScaledStdConv2dSame)}


def prepare(model: nn.Module, patterns: Iterable[str] = ()) -> nn.Module:
    """A copy of ``model`` with more layers to compress; ``model`` itself if there is nothing to do.

    - Weight-standardised convolutions become plain ones with the standardised weight.
    - Attention that multiplies with the weight of its ``qkv`` layer calls it instead (BEiT, EVA, Swin v2).
    - Linear layers that match ``patterns`` are split, see :func:`lrsearch.compress.split.split`.

    Raises:
        ConfigError: a pattern matches no layer, or one that cannot be split.
    """
    if any(_standardised(m) or _reads_qkv(m) for m in model.modules()):
        model = copy.deepcopy(model)
        for module in model.modules():
            if _standardised(module):
                _make_plain(module)
            if _reads_qkv(module):
                module.__dict__["qkv_bias_separate"] = True
    return split(model, patterns)


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
