"""A weight that is composed only when it is used as a tensor."""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

_OPERATORS = (
    "add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "matmul", "rmatmul", "pow", "rpow", "neg", "abs",
    "getitem", "len", "iter", "eq", "ne", "lt", "le", "gt", "ge", "array",
)  # fmt: skip


class LazyWeight:
    """Stands for the tensor that ``compose`` returns; its shape, dtype and device are known without it.

    Any torch function, operator or attribute beyond those few works on the composed tensor,
    so gradients flow and ``torch.export`` traces what is really computed.

    Args:
        shape: shape of the tensor.
        like: a tensor of the same dtype, device and ``requires_grad``.
        compose: computes the tensor, each time it is used.
    """

    def __init__(self, shape: Sequence[int], like: Tensor, compose: Callable[[], Tensor]) -> None:
        self.shape, self.ndim, self.compose = torch.Size(shape), len(shape), compose
        self.dtype, self.device, self.requires_grad = like.dtype, like.device, like.requires_grad

    def size(self, dim: int | None = None) -> torch.Size | int:
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        return self.ndim

    def numel(self) -> int:
        return prod(self.shape)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.compose(), name)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        args, kwargs = tree_map_only(cls, lambda weight: weight.compose(), (args, dict(kwargs or {})))
        return func(*args, **kwargs)


def _composed(name: str) -> Callable[..., Any]:
    return lambda weight, *args: getattr(weight.compose(), name)(*args)


for _name in (f"__{operator}__" for operator in _OPERATORS):
    setattr(LazyWeight, _name, _composed(_name))
