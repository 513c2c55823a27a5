"""LayerSpec: what the tool needs to know of one compressible layer, without torch."""

from dataclasses import dataclass
from math import prod
from typing import Literal

Kind = Literal["linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"]
PLAIN: tuple[Kind, ...] = ("linear", "conv1d", "conv2d")  # what all formats, patterns and runtimes are made for
WIDEST = 16384  # rows or columns of which a layer may have more, but not of both: 1 GiB of float32
WHOLE, BLOCK = WIDEST, 1024  # columns of a whole Gram matrix; of a block of a wider one, whose eigenvectors take a second


@dataclass(frozen=True)
class LayerSpec:
    """One compressible layer, seen as a matrix per group.

    A weight ``(out, in/groups, *kernel)`` is read as ``groups`` matrices of
    ``rows/groups x columns`` with ``rows = out`` and ``columns = in/groups * prod(kernel)``.
    That of a transposed convolution, ``(in, out/groups, *kernel)``, scatters what it makes of each input
    position: ``rows = out * prod(kernel)``, ``columns = in/groups``. Where that overlaps, errors of fits are those
    before it is summed.

    Attributes:
        name: qualified module name.
        kind: what the layer is.
        weight_shape: shape of the dense weight.
        groups: convolution groups; 1 for linear layers.
        positions: output positions per example (pixels, tokens), summed over calls, that each value of the
            weight is multiplied for; of transposed convolutions input positions.
        input_positions: input positions per example, likewise; where a chain of convolutions
            has not yet strided.
        half_positions: the same after striding over the height alone.
        itemsize: bytes of one value of the dense weight.
        tied: names of the other modules that have the same weight; what the layer becomes, they become.
        read_by: name of the layer that alone reads its outputs, each as one of its input channels; empty if there is none, or none
            is known. Outputs behind columns that this one drops are neither computed nor stored (:mod:`lrsearch.spec.unread`).
    """

    name: str
    kind: Kind
    weight_shape: tuple[int, ...]
    groups: int = 1
    positions: int = 0
    input_positions: int = 0
    half_positions: int = 0
    itemsize: int = 4
    tied: tuple[str, ...] = ()
    read_by: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight_shape", tuple(self.weight_shape))
        object.__setattr__(self, "tied", tuple(self.tied))

    @property
    def names(self) -> tuple[str, ...]:
        """Of all modules that have the weight."""
        return self.name, *self.tied

    @property
    def plain(self) -> bool:
        """Whether it is one of the kinds that every format and pattern is made for."""
        return self.kind in PLAIN

    @property
    def transposed(self) -> bool:
        return self.kind.startswith("conv_transpose")

    @property
    def rows(self) -> int:
        return self.groups * prod(self.weight_shape[1:]) if self.transposed else self.weight_shape[0]

    @property
    def columns(self) -> int:
        return self.channels if self.transposed else prod(self.weight_shape[1:])

    @property
    def channels(self) -> int:
        """Input channels of one group."""
        return self.weight_shape[0] // self.groups if self.transposed else self.weight_shape[1]

    @property
    def kernel(self) -> tuple[int, int]:
        """Height and width of what reads the input: 1-D convolutions have height 1, linear layers and transposed convolutions
        are 1 x 1; of 3-D convolutions depth, and height times width."""
        if self.transposed:
            return 1, 1
        if self.kind == "conv3d":
            return self.weight_shape[2], self.weight_shape[3] * self.weight_shape[4]
        height, width = (1, 1, *self.weight_shape[2:])[-2:]
        return height, width

    @property
    def blocks(self) -> int:
        """Into how many blocks of input channels a group's Gram matrix is divided, 1 unless it is too wide.

        What the blocks have to do with each other is then neglected: the matrix is block-diagonal.
        """
        if self.columns <= WHOLE:
            return 1
        least = -(-self.columns // BLOCK)
        return next(n for n in range(least, self.channels + 1) if self.channels % n == 0) if least <= self.channels else self.channels

    @property
    def gram_shape(self) -> tuple[int, int, int]:
        """``(groups * blocks, columns / blocks, columns / blocks)``."""
        return self.groups * self.blocks, self.columns // self.blocks, self.columns // self.blocks

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
