"""A model's ONNX file in the precision that ships: made, with calibration data where it needs them, and scored as the file it is."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from lrsearch.compress.modules import CompressedLayer
from lrsearch.deploy.onnx_export import arrays
from lrsearch.deploy.onnx_run import OnnxModel
from lrsearch.deploy.onnx_size import compact
from lrsearch.deploy.quantize import QUANTISED, quantised
from lrsearch.errors import ConfigError
from lrsearch.spec.config import Precision
from lrsearch.task.base import Task
from lrsearch.task.data import Examples, shuffled
from lrsearch.task.forward import examples_in
from lrsearch.task.memory import BatchSize
from lrsearch.task.scoring import Comparison, Reference
from lrsearch.workflows.steps.onnx_session import onnx_session

CALIBRATED, JUDGED = 128, 256  # examples that ranges are taken from, and that choose among them; the first are most of what is held at once
AT_ONCE = 16  # examples


@dataclass(frozen=True)
class Lowering:
    """What a file of ``precision`` is made with.

    Attributes:
        base: the dense model.
        calibration: int8 needs them: three quarters give ranges, the rest decides how they are taken; of either no more than it needs.
        task: says how far outputs are apart.
    """

    precision: Precision = "float32"
    base: nn.Module | None = None
    calibration: Examples | None = None
    task: Task | None = None

    def __call__(self, whole: bytes, model: nn.Module, layers: Sequence[CompressedLayer], batch: int | None) -> bytes:
        """The file of ``model``.

        Args:
            whole: the model in float32, as the exporter writes it.
            layers: its compressed layers, folded.
            batch: the size that it is for; None for any.

        Raises:
            ConfigError: there are no calibration data, or less than two examples.
        """
        if self.precision == "int8":
            whole, layers = self._int8(whole, model, batch), ()
        return compact(whole, self.precision == "float16", layers)

    def _int8(self, whole: bytes, model: nn.Module, batch: int | None) -> bytes:
        import onnx

        fit, held_out = self._parts()
        assert self.base is not None
        assert self.task is not None
        reference = Reference(self.task, self.base, held_out, BatchSize(AT_ONCE))
        inputs = [b.inputs for b in fit.batches(batch or AT_ONCE)]
        feeds = [arrays(x) for x in inputs if batch is None or examples_in(x) == batch]
        made = quantised(whole, feeds, lambda each: float(compared(reference, each, model).divergences.mean()))
        program = onnx.load_from_string(made.model)
        note = program.metadata_props.add()
        note.key, note.value = QUANTISED, json.dumps({"calibration": made.method, "tried": made.tried, "weight_bits": made.weight_bits})
        data: bytes = program.SerializeToString()
        return data

    def _parts(self) -> tuple[Examples, Examples]:
        units = self.calibration.units if self.calibration else 0
        if self.calibration is None or units < 2:
            raise ConfigError(
                "int8 needs calibration data", value=f"{units} examples", place="deploy.precision",
                remedy="Name data.calibration, or pass calibration=.",
            )
        order, cut = shuffled(units), max(1, units * 3 // 4)
        return self.calibration.part(order[:cut][:CALIBRATED]), self.calibration.part(order[cut:][:JUDGED])


def compared(reference: Reference, file: Any, model: nn.Module) -> Comparison:
    """An ONNX model, its bytes or path, beside the dense one; ``model`` is the one it was made of."""
    return reference.compare(OnnxModel(onnx_session(file), model), "model.onnx")
