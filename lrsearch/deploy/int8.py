"""What quantising to int8 does to a candidate, without making the file: weights and layers' inputs are rounded as they will be.

Weights have a scale for each output; of a chain of factors, each has its own. Inputs have a range for each tensor, that of the dense
model on calibration data. Sums and activations between layers are rounded where a layer reads them.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from lrsearch.compress.apply import write_effective
from lrsearch.compress.fit import Decomposition
from lrsearch.deploy.quantize import weight_bits
from lrsearch.task.forward import Inputs, forward, inference

LEVELS = 255  # steps of an activation's range
TINY = 1e-12  # a range that is no wider has one value


class Int8:
    """Rounds what a dense working copy computes with.

    Args:
        model: dense, with its own weights; not changed.
        batches: calibration inputs.
        bits: of a weight.
    """

    def __init__(self, model: nn.Module, batches: Iterable[Inputs], bits: int | None = None) -> None:
        self.model, self.largest = model, 2 ** ((bits or weight_bits()) - 1) - 1
        self._layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | _ConvNd)}
        self.ranges: dict[str, tuple[float, float]] = dict.fromkeys(self._layers, (0.0, 0.0))
        with self._hooked(self._widen), inference(model):
            for inputs in batches:
                forward(model, inputs)

    def _widen(self, name: str, x: Tensor) -> Tensor:
        low, high = self.ranges[name]
        self.ranges[name] = min(low, float(x.min())), max(high, float(x.max()))  # 0 is in every range, so that padding is exact
        return x

    def _rounded(self, name: str, x: Tensor) -> Tensor:
        low, high = self.ranges[name]
        step = max(high - low, TINY) / LEVELS
        rounded: Tensor = torch.fake_quantize_per_tensor_affine(x.float(), step, round(-low / step), 0, LEVELS)
        return rounded.to(x.dtype)

    @contextmanager
    def _hooked(self, change: Any) -> Iterator[None]:
        """With ``change`` (name, input) → input before each layer."""
        hooks = [
            layer.register_forward_pre_hook(lambda _, args, name=name: (change(name, args[0]), *args[1:]) if args else None)
            for name, layer in self._layers.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def applied(self, fits: Mapping[str, Decomposition]) -> Iterator[None]:
        """The working copy, into which ``fits`` are written, in int8; afterwards as it was."""
        weights = {id(layer.weight): layer for layer in self._layers.values()}  # tied ones once
        kept = [(layer, layer.weight.detach().clone()) for layer in weights.values()]
        chains = {n: fit for n, fit in fits.items() if fit.plan.executed.rank}
        write_effective(self.model, {name: self._fit(fit) for name, fit in chains.items()})
        try:
            with torch.no_grad(), self._hooked(self._rounded):
                whole = {id(self.model.get_submodule(name).weight) for name in chains}
                for layer in (each for key, each in weights.items() if key not in whole):
                    turned = isinstance(layer, _ConvTransposeNd)
                    layer.weight.copy_(self.in_rows(layer.weight.transpose(0, 1)).transpose(0, 1) if turned else self.in_rows(layer.weight))
                yield
        finally:
            with torch.no_grad():
                for layer, weight in kept:
                    layer.weight.copy_(weight)

    def _fit(self, fit: Decomposition) -> Decomposition:
        sparse = self.in_rows(fit.sparse.flatten(0, 1)).view_as(fit.sparse)
        return replace(fit, factors=tuple(map(self.in_rows, fit.factors)), sparse=sparse)

    def in_rows(self, weight: Tensor) -> Tensor:
        """``weight`` (rows, …) rounded to whole multiples of each row's scale."""
        scale = (weight.flatten(1).abs().amax(1) / self.largest).clamp_min(TINY).view(-1, *[1] * (weight.dim() - 1))
        rounded: Tensor = (weight / scale).round() * scale
        return rounded
