"""A weight that is composed only when it is computed with."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

_KNOWN = {getattr(Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device", "layout", "requires_grad", "is_leaf")}
_KNOWN |= {Tensor.size, Tensor.dim, Tensor.numel, Tensor.is_floating_point}


class LazyWeight(nn.Parameter):
    """Stands for the tensor that ``compose`` returns; its shape, dtype and device are known without it.

    It is a parameter, as a dense layer's weight is, but none that a module holds. Whatever else is
    done with it is done with the composed tensor, so gradients flow.

    Args:
        shape: shape of the tensor.
        like: a tensor of the same dtype, device and ``requires_grad``.
        compose: computes the tensor, each time it is used.
    """

    compose: Callable[[], Tensor]

    @staticmethod
    def __new__(cls, shape: Sequence[int], like: Tensor, compose: Callable[[], Tensor]) -> "LazyWeight":
        lazy: LazyWeight = Tensor._make_wrapper_subclass(cls, shape, dtype=like.dtype, device=like.device, requires_grad=like.requires_grad)
        lazy.__dict__["compose"] = compose
        return lazy

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in _KNOWN:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        return cls.__torch_dispatch__(func, types, args, kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        args, kwargs = tree_map_only(cls, lambda weight: weight.__dict__["compose"](), (args, dict(kwargs or {})))
        return func(*args, **kwargs)
