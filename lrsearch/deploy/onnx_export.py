"""Any module → ONNX by torch's exporter: one graph input for each tensor that it is given, one output for each that it returns."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from lrsearch.deploy.apart import apart
from lrsearch.deploy.onnx_sums import without_zeros
from lrsearch.task.forward import Inputs, copied, examples_in, forward, inference, named_tensors, output_tensors, tensors

OPSET = 20
PRECISION = "lrsearch.precision"  # a model's metadata: the coarsest type that torch computes in


class Flat(nn.Module):
    """A model as a function of tensors: (tensors of ``sample``, in order) → a tuple of the tensors that it returns.

    What ``sample`` holds beside tensors is constant.
    """

    def __init__(self, model: nn.Module, sample: Inputs) -> None:
        super().__init__()
        self.model, self.training = model, model.training
        self._leaves, self._structure = tree_flatten(sample)

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        left = iter(given)
        leaves = [next(left) if isinstance(leaf, Tensor) else leaf for leaf in self._leaves]
        return tuple(output_tensors(forward(self.model, tree_unflatten(leaves, self._structure))).values())


def exported(module: nn.Module, sample: Inputs, dynamic: bool = False) -> bytes:
    """``module`` as torch's exporter writes it, for batches of the size of ``sample``, or ``dynamic`` for any.

    Inputs and outputs are named as :func:`lrsearch.task.forward.named_tensors` does. Runtimes on a CPU compute neither in bfloat16 nor,
    in convolutions, in float64: whatever is of these types is float32 instead; inputs and outputs of float64 stay so.
    The exporter runs in a process of its own, as some models end it with a segmentation fault.

    Raises:
        ApartError: torch cannot export it.
    """
    _imported()
    return apart(lambda: _exported(module, sample, dynamic))


@cache
def _imported() -> None:
    """Export nothing much, so that what the exporter imports need not be imported in each process anew."""
    _exported(nn.Identity(), torch.zeros(2, 1), True)


def _exported(module: nn.Module, sample: Inputs, dynamic: bool) -> bytes:
    given, batch = tensors(sample), torch.export.Dim("batch")
    shapes = tuple({0: batch} if t.dim() and len(t) == examples_in(sample) else {} for t in given)
    with inference(module), torch.inference_mode(False), torch.no_grad():
        names = list(output_tensors(forward(module, sample)))
    with _quiet("torch.onnx", "onnxscript"), torch.no_grad(), _data_detached():
        program = torch.onnx.export(
            Flat(module, sample), tuple(given), dynamo=True, verbose=False, opset_version=OPSET,
            dynamic_shapes=(shapes,) if dynamic else None, input_names=list(arrays(sample)), output_names=names,
        )
    assert program is not None
    data: bytes = without_zeros(computable(program.model_proto)).SerializeToString()
    return data


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """No warnings, nor those that the loggers ``names`` write of constants that they do not fold."""
    levels = {logging.getLogger(name): logging.getLogger(name).level for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in levels:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in levels.items():
                logger.setLevel(level)


@contextmanager
def _data_detached() -> Iterator[None]:
    """Read ``tensor.data`` as ``tensor.detach()``: of a layer's ``data`` torch's exporter dies."""
    set_data = Tensor.data.__set__  # type: ignore[attr-defined]
    Tensor.data = property(Tensor.detach, lambda tensor, value: set_data(tensor, value))  # type: ignore[assignment]
    try:
        yield
    finally:
        del Tensor.data


def arrays(sample: Inputs) -> dict[str, np.ndarray]:
    """``sample`` as an exported model takes it: input name → values, in order."""
    given = named_tensors(copied(sample))  # one tensor given twice is two inputs
    return {n: (t.float() if t.dtype == torch.bfloat16 else t).detach().cpu().numpy() for n, t in given.items()}


def computable(model: Any) -> Any:
    """``model``, an ONNX ModelProto, changed in place: float32 instead of types that runtimes on a CPU do not compute in.

    Its metadata note the coarsest type that it had.
    """
    from onnx import TensorProto, helper

    met = _to_float32(model.graph, set())
    for taken, values in ((True, model.graph.input), (False, model.graph.output)):
        for value in (v for v in values if v.type.tensor_type.elem_type == TensorProto.DOUBLE):
            inner = f"{value.name}.float32"
            for node in model.graph.node:
                names = node.input if taken else node.output
                names[:] = [inner if name == value.name else name for name in names]
            ends = (value.name, inner) if taken else (inner, value.name)
            cast = helper.make_node("Cast", [ends[0]], [ends[1]], to=TensorProto.FLOAT if taken else TensorProto.DOUBLE)
            model.graph.node.insert(0 if taken else len(model.graph.node), cast)
    half = [name for name in ("bfloat16", "float16") if getattr(TensorProto, name.upper()) in met]
    helper.set_model_props(model, {PRECISION: (half or ["float32"])[0]})
    return model


def _to_float32(graph: Any, met: set[int]) -> set[int]:
    """Change the types in ``graph``, but those of float64 that it takes and returns; ``met`` gathers all that there were."""
    from onnx import TensorProto, numpy_helper

    def mended(kind: int) -> int:
        met.add(kind)
        return TensorProto.FLOAT if kind in (TensorProto.BFLOAT16, TensorProto.DOUBLE) else kind

    def mend(tensor: Any) -> None:
        if mended(tensor.data_type) != tensor.data_type:
            most = np.finfo(np.float32).max
            values = numpy_helper.to_array(tensor).astype(np.float64)
            values = np.where(np.isfinite(values), values.clip(-most, most), values)
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))

    for tensor in graph.initializer:
        mend(tensor)
    for value in graph.value_info:
        value.type.tensor_type.elem_type = mended(value.type.tensor_type.elem_type)
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type != TensorProto.DOUBLE:
            value.type.tensor_type.elem_type = mended(value.type.tensor_type.elem_type)
    for attribute in (a for node in graph.node for a in node.attribute):
        if attribute.name in ("to", "dtype"):
            attribute.i = mended(attribute.i)
        if attribute.HasField("t"):
            mend(attribute.t)
        if attribute.HasField("g"):
            _to_float32(attribute.g, met)
    return met
