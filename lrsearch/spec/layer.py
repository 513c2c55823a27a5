"""LayerSpec: what the tool needs to know of one compressible layer, without torch."""

from dataclasses import dataclass
from math import prod
from typing import Literal


@dataclass(frozen=True)
class LayerSpec:
    """One compressible layer, seen as a matrix per group.

    A weight ``(out, in/groups, *kernel)`` is read as ``groups`` matrices of
    ``rows/groups x columns`` with ``rows = out`` and ``columns = in/groups * prod(kernel)``.

    Attributes:
        name: qualified module name.
        kind: ``"linear"``, ``"conv1d"`` or ``"conv2d"``.
        weight_shape: shape of the dense weight.
        groups: convolution groups; 1 for linear layers.
        positions: output positions per example (pixels, tokens), summed over calls.
        input_positions: input positions per example, likewise; where a chain of convolutions
            has not yet strided.
        half_positions: the same after striding over the height alone.
        itemsize: bytes of one value of the dense weight.
    """

    name: str
    kind: Literal["linear", "conv1d", "conv2d"]
    weight_shape: tuple[int, ...]
    groups: int = 1
    positions: int = 0
    input_positions: int = 0
    half_positions: int = 0
    itemsize: int = 4

    @property
    def rows(self) -> int:
        return self.weight_shape[0]

    @property
    def columns(self) -> int:
        return prod(self.weight_shape[1:])

    @property
    def channels(self) -> int:
        """Input channels of one group."""
        return self.weight_shape[1]

    @property
    def kernel(self) -> tuple[int, int]:
        """Height and width; 1-D convolutions have height 1, linear layers are 1 x 1."""
        height, width = (1, 1, *self.weight_shape[2:])[-2:]
        return height, width

    @property
    def numel(self) -> int:
        return self.rows * self.columns

    @property
    def matrix_shape(self) -> tuple[int, int, int]:
        """``(groups, rows / groups, columns)``."""
        return self.groups, self.rows // self.groups, self.columns

    @property
    def depthwise(self) -> bool:
        """One input channel per group: too few values for a low-rank part."""
        return self.groups > 1 and self.channels == 1
