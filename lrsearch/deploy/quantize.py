"""ONNX models in int8: static quantisation by ONNX Runtime's own quantiser, in the QDQ format that runtimes fuse into integer operators.

Weights are symmetric with a scale for each output, activations unsigned and asymmetric with one for each tensor, which is what ONNX
Runtime recommends on x86 (S8S8 or U8S8 in QDQ). Of a model with layer normalisations, which compute in float between the products
anyway, only the products are quantised: of ViT-S that leaves a KL of 0.031 instead of 0.100, and takes 0.535 of float32's time instead
of 0.512. Of these, products of two activations, such as attention's, stay in float, as they gain nothing: without them the KL is 0.009
instead of 0.023, and the time 0.56 of float32's instead of 0.71 on another processor (``studies/results/int8_operators.txt``).
"""

import contextlib
import io
import logging
import platform
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lrsearch.deploy.onnx_sums import with_whole_constants

METHODS = ("MinMax", "Percentile", "Entropy")  # names of onnxruntime.quantization.CalibrationMethod
QUANTISED = "lrsearch.quantised"  # a model's metadata: how ranges were calibrated
PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
LAYER_NORM = "LayerNormalization"
REVISION = 3  # of which operators are quantised; latencies of another are of other models
MADE_UP = 6.0  # ends of the range of every tensor, where only time matters
_INTEGER_DOTS = ("avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8")  # flags of processors that sum products in 32 bits
_CPUINFO = Path("/proc/cpuinfo")

Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Quantised:
    """An ONNX model in int8.

    Attributes:
        model: serialised.
        method: of calibration that was chosen.
        tried: method → divergence on held-out examples.
        weight_bits: 8; or 7 where the processor adds products up in 16 bits, which overflow.
    """

    model: bytes
    method: str
    tried: Mapping[str, float]
    weight_bits: int


def quantised(model: bytes, calibration: Sequence[Feeds], divergence: Callable[[bytes], float]) -> Quantised:
    """``model`` in int8, calibrated by the method whose result diverges least on held-out examples.

    Args:
        model: serialised, in float32.
        calibration: batches by input name; ranges of activations are theirs.
        divergence: of a serialised model, on examples that are not among these.
    """
    bits, made = weight_bits(), dict[str, bytes]()
    with tempfile.TemporaryDirectory(prefix="lrsearch-") as folder, _silent():
        path = Path(folder) / "model.onnx"
        path.write_bytes(model)
        for method in METHODS:
            made[method] = _quantised(model, _ranges(path, method, calibration), bits)
    tried = {method: divergence(each) for method, each in made.items()}
    best = min(METHODS, key=tried.__getitem__)
    return Quantised(made[best], best, tried, bits)


def quantised_to_time(model: bytes) -> bytes:
    """``model`` in int8 with made-up ranges: it takes as long as one that is calibrated, and computes nothing of use."""
    import onnx
    from onnxruntime.quantization import CalibrationMethod, TensorsData

    whole = onnx.shape_inference.infer_shapes(onnx.load_from_string(model)).graph
    ends = np.array(-MADE_UP, np.float32), np.array(MADE_UP, np.float32)
    values = (v for v in (*whole.input, *whole.value_info, *whole.output) if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT)
    with _silent():
        return _quantised(model, TensorsData(CalibrationMethod.MinMax, {v.name: ends for v in values}), weight_bits())


def weight_bits() -> int:
    """Bits of a weight that this processor multiplies exactly: those of x86 without VNNI add products of 8 bits up in 16, which
    overflow, and ONNX Runtime recommends 7 there (``reduce_range``)."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return 8
    flags = next((line for line in _lines() if line.startswith("flags")), "").split()
    return 8 if set(flags) & set(_INTEGER_DOTS) else 7


def _lines() -> list[str]:
    return _CPUINFO.read_text().splitlines() if _CPUINFO.exists() else []


def _ranges(path: Path, method: str, calibration: Sequence[Feeds]) -> Any:
    from onnxruntime.quantization import CalibrationMethod, create_calibrator

    augmented = str(path.with_name("augmented.onnx"))
    calibrator = create_calibrator(path, None, augmented, calibrate_method=CalibrationMethod[method])
    for feeds in calibration:  # one at a time, as it keeps all tensors of what it is given at once
        calibrator.collect_data(_Once(feeds))
    return calibrator.compute_data()


class _Once:
    """A CalibrationDataReader of one batch."""

    def __init__(self, feeds: Feeds) -> None:
        self._left: Feeds | None = feeds

    def get_next(self) -> Feeds | None:
        given, self._left = self._left, None
        return given


def _quantised(model: bytes, ranges: Any, bits: int) -> bytes:
    import onnx
    from onnxruntime.quantization import QDQQuantizer, QuantType
    from onnxruntime.quantization.quant_utils import add_infer_metadata

    whole = onnx.load_from_string(model)
    taken = operators(node.op_type for node in whole.graph.node)
    whole = onnx.shape_inference.infer_shapes(with_whole_constants(whole) if "Add" in taken else whole)
    add_infer_metadata(whole)  # else it goes through the disk to infer shapes
    for number, node in enumerate(whole.graph.node):
        node.name = node.name or f"node_{number}"
    left = products_of_activations(whole.graph) if taken == sorted(PRODUCTS) else []
    quantiser = QDQQuantizer(
        whole, True, bits < 8, QuantType.QInt8, QuantType.QUInt8, ranges, [], left, taken,
        {"ActivationSymmetric": False, "WeightSymmetric": True},
    )
    quantiser.quantize_model()
    data: bytes = quantiser.model.model.SerializeToString()
    return data


def products_of_activations(graph: Any) -> list[str]:
    """Names of the nodes of an ONNX ``graph`` that multiply two tensors which both depend on its inputs, such as attention does."""
    known, found = {each.name for each in graph.initializer}, list[str]()
    computed = {each.name for each in graph.input} - known
    for node in graph.node:  # in the order of computing, as ONNX demands
        of_inputs = [name in computed for name in node.input]
        computed.update(node.output if any(of_inputs) else ())
        if node.op_type in PRODUCTS and all(of_inputs[:2]):  # a third is added to the product
            found.append(node.name)
    return found


def operators(used: Iterable[str]) -> list[str]:
    """Types of the operators that are quantised in a graph that has the types ``used``."""
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    return sorted(PRODUCTS) if LAYER_NORM in used else sorted({*QLinearOpsRegistry, *QDQRegistry})


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without what the quantiser prints, and warns of by the root logger, which shows all that is logged once it has been used so."""

    def drop(_: logging.LogRecord) -> bool:
        return False

    root, some = logging.getLogger(), logging.NullHandler()
    root.addFilter(drop)
    root.addHandler(some)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.removeHandler(some)
        root.removeFilter(drop)
