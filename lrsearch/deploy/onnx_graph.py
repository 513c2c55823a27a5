"""Modules → ONNX: deployed layers directly, in a millisecond instead of a second; all else by torch's exporter."""

from collections.abc import Callable
from typing import Any

import torch
from timm.layers import Conv2dSame
from timm.layers.padding import get_same_padding
from torch import Tensor, nn

from lrsearch.compress.inventory import DENSE_FORWARDS
from lrsearch.compress.matricize import Conv, Convolution
from lrsearch.deploy.onnx_export import OPSET, exported
from lrsearch.deploy.plain_layers import Gather, Nothing, Pad, Spread, Sum
from lrsearch.task.forward import Inputs

IR_VERSION = 10  # of ONNX files: what ONNX Runtime 1.18 reads


class NeedsExporter(Exception):
    """A module, or an input, that :class:`Graph` does not write: torch's exporter has to."""


def onnx_model(module: nn.Module, sample: Inputs) -> bytes:
    """``module``, in eval mode, as a serialised ONNX model whose inputs have the fixed shapes of ``sample``."""
    try:
        return Graph().model(module, sample)
    except NeedsExporter:
        return exported(module, sample)


class Graph:
    """Writes the operators that torch's exporter writes for the same modules.

    Args:
        prefix: before all names.
    """

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []
        self.pads: list[int] = []  # of a Pad, until the convolution after it takes them
        self.writers: dict[type[nn.Module], Callable[[Any, str, Tensor], str]] = {
            nn.Linear: self._linear, nn.Conv1d: self._conv, nn.Conv2d: self._conv, Conv2dSame: self._conv,
            Pad: self._pad, Gather: self._gather, Spread: self._spread, Sum: self._sum, Nothing: self._constant,
            nn.Identity: _nothing, nn.Dropout: _nothing, nn.ReLU: self._relu, nn.ReLU6: self._clip, nn.GELU: self._gelu,
        }

    def model(self, module: nn.Module, sample: Inputs) -> bytes:
        """See :func:`onnx_model`.

        Raises:
            NeedsExporter: torch's exporter has to write it.
        """
        from onnx import TensorProto, helper

        kinds = {torch.float32: TensorProto.FLOAT, torch.bfloat16: TensorProto.FLOAT, torch.float16: TensorProto.FLOAT16}
        if not isinstance(sample, Tensor) or sample.dtype not in kinds:
            raise NeedsExporter
        kind = kinds[sample.dtype]
        name, y = self.add(module, "input", sample)
        ends = [helper.make_tensor_value_info(n, kind, list(t.shape)) for n, t in (("input", sample), (name, y))]
        graph = helper.make_graph(self.nodes, "layer", ends[:1], ends[1:], self.tensors)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        data: bytes = made.SerializeToString()
        return data

    @torch.no_grad()
    def add(self, module: nn.Module, name: str, x: Tensor) -> tuple[str, Tensor]:
        """Write ``module`` reading ``name``, whose value is like ``x``.

        Returns:
            The name and the value of its output.

        Raises:
            NeedsExporter: it is a module that torch's exporter has to write.
        """
        if isinstance(module, nn.Sequential):
            for child in module:
                name, x = self.add(child, name, x)
            return name, x
        writer = self.writers.get(type(module))
        hooked = module._forward_hooks or module._forward_pre_hooks
        if writer is None or hooked or (isinstance(module, nn.Linear | Conv) and type(module).forward not in DENSE_FORWARDS):
            raise NeedsExporter
        return writer(module, name, x), module(x)

    def _node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        from onnx import helper

        output = f"{self.prefix}{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def _tensor(self, value: Tensor) -> str:
        from onnx import numpy_helper

        value = value.float() if value.dtype in (torch.bfloat16, torch.float64) else value  # as in exported models
        name = f"{self.prefix}tensor_{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(value.detach().cpu().contiguous().numpy(), name))
        return name

    def _optional(self, value: Tensor | None) -> list[str]:
        return [] if value is None else [self._tensor(value)]

    def _linear(self, module: nn.Linear, name: str, x: Tensor) -> str:
        if x.dim() == 2:
            return self._node("Gemm", name, self._tensor(module.weight), *self._optional(module.bias), transB=1)
        name = self._node("MatMul", name, self._tensor(module.weight.T))
        return name if module.bias is None else self._node("Add", name, self._tensor(module.bias))

    def _conv(self, module: Conv, name: str, x: Tensor) -> str:
        rule, dims = Convolution.of(module), len(module.kernel_size)
        pads = self.pads or _amounts(rule, "hw", dims, x)
        self.pads = []
        return self._node(
            "Conv", name, self._tensor(module.weight), *self._optional(module.bias), group=module.groups, pads=pads,
            kernel_shape=list(module.kernel_size), strides=list(module.stride), dilations=list(module.dilation),
        )

    def _pad(self, module: Pad, name: str, x: Tensor) -> str:
        self.pads = _amounts(module.rule, module.axes, module.dims, x)
        return name

    def _zeros(self, name: str, starts: list[int], ends: list[int], x: Tensor) -> str:
        return self._node("Pad", name, self._tensor(torch.tensor(starts + ends)), self._tensor(torch.zeros((), dtype=x.dtype)))

    def _gather(self, module: Gather, name: str, x: Tensor) -> str:
        return self._node("Gather", name, self._tensor(module.get_buffer("index")), axis=x.dim() - 1 - module.dims)

    def _spread(self, module: Spread, name: str, x: Tensor) -> str:
        axis = x.dim() - 1 - module.dims
        name = self._zeros(name, [0] * x.dim(), [int(i == axis) for i in range(x.dim())], x)
        name = self._node("Gather", name, self._tensor(module.get_buffer("source")), axis=axis)
        return name if module.bias is None else self._node("Add", name, self._tensor(module.bias))

    def _relu(self, _: nn.Module, name: str, __: Tensor) -> str:
        return self._node("Relu", name)

    def _clip(self, module: nn.ReLU6, name: str, x: Tensor) -> str:
        limits = (torch.tensor(limit, dtype=x.dtype) for limit in (module.min_val, module.max_val))
        return self._node("Clip", name, *map(self._tensor, limits))

    def _gelu(self, module: nn.GELU, name: str, _: Tensor) -> str:
        return self._node("Gelu", name, approximate=module.approximate)

    def _constant(self, module: Nothing, _: str, x: Tensor) -> str:
        from onnx import numpy_helper

        y = module(x)
        zero = numpy_helper.from_array(torch.zeros(1, dtype=torch.float32 if x.dtype == torch.bfloat16 else x.dtype).numpy())
        zeros = self._node("ConstantOfShape", self._tensor(torch.tensor(y.shape)), value=zero)
        return zeros if module.bias is None else self._node("Add", zeros, self._tensor(module.bias.view(-1, *[1] * module.dims)))

    def _sum(self, module: Sum, name: str, x: Tensor) -> str:
        return self._node("Add", self.add(module.low_rank, name, x)[0], self.add(module.sparse, name, x)[0])


def _nothing(_: nn.Module, name: str, __: Tensor) -> str:
    return name


def _amounts(rule: Convolution, axes: str, dims: int, x: Tensor) -> list[int]:
    """Zeros before and after each axis, ``[top, left, bottom, right]`` or ``[left, right]``."""
    if rule.mode != "constant" and any(rule.amounts):
        raise NeedsExporter
    left, right, top, bottom = (a if axis in axes else 0 for a, axis in zip(rule.amounts, "wwhh", strict=True))
    if rule.same:
        kernel, stride, dilation = (rule.along(axes, v) for v in (rule.kernel, rule.stride, rule.dilation))
        high, wide = (get_same_padding(x.shape[i - 2], kernel[i], stride[i], dilation[i]) for i in range(2))
        left, right, top, bottom = wide // 2, wide - wide // 2, high // 2, high - high // 2
    return [*(top, left)[-dims:], *(bottom, right)[-dims:]]
