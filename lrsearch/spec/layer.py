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
        kind: ``"linear"`` or ``"conv2d"``.
        weight_shape: shape of the dense weight.
        groups: convolution groups; 1 for linear layers.
        positions: output positions per example (pixels, tokens), summed over calls.
    """

    name: str
    kind: Literal["linear", "conv2d"]
    weight_shape: tuple[int, ...]
    groups: int
    positions: int

    @property
    def rows(self) -> int:
        return self.weight_shape[0]

    @property
    def columns(self) -> int:
        return prod(self.weight_shape[1:])

    @property
    def numel(self) -> int:
        return self.rows * self.columns

    @property
    def matrix_shape(self) -> tuple[int, int, int]:
        """``(groups, rows / groups, columns)``."""
        return self.groups, self.rows // self.groups, self.columns

    @property
    def max_rank(self) -> int:
        """Largest useful rank; 0 where a low-rank part is not offered (grouped convolutions)."""
        return min(self.rows, self.columns) if self.groups == 1 else 0
