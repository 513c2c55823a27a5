"""A compressed model in the form that runtimes fuse best: plain layers one after another, BatchNorm folded away."""

import copy
from collections.abc import Collection

from torch import Tensor, nn

from lrsearch.compress.fold import fold_batchnorm, replace
from lrsearch.compress.modules import CompressedLayer
from lrsearch.compress.plain import plain


def deployed(model: nn.Module, sample: Tensor | None = None, merged: Collection[str] = ()) -> nn.Module:
    """A copy of ``model`` for a runtime, in eval mode, with the same outputs.

    Args:
        model: dense or compressed.
        sample: a batch that it accepts, by which BatchNorms are folded; they stay if None.
        merged: names of compressed layers that are to run as one dense layer, because that is faster.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    if sample is not None:
        fold_batchnorm(model, sample)
    for name, layer in [(n, m) for n, m in model.named_modules() if isinstance(m, CompressedLayer)]:
        replace(model, layer, plain(layer, name in merged))
    return model.requires_grad_(False)
