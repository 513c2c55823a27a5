"""Pattern: which values of S are kept or dropped together."""

import re
from dataclasses import dataclass
from functools import cache
from typing import Literal

from lrsearch.spec.layer import LayerSpec


@dataclass(frozen=True)
class Pattern:
    """How S may be sparse; get one by :func:`pattern`.

    The unit that is kept or dropped whole is an *atom*: one value (``unstructured``, ``n:m``),
    ``height x width`` values of neighbouring outputs and input channels at one kernel position
    (``block``), an input channel (``column``) or an output (``row``). In ``n:m``, n of every m
    neighbouring input channels are kept, at each output and kernel position.
    """

    kind: Literal["unstructured", "n:m", "block", "column", "row"]
    height: int = 1
    width: int = 1

    @property
    def density(self) -> float | None:
        """The one density that ``n:m`` has; None for the others."""
        return self.height / self.width if self.kind == "n:m" else None

    def refusal(self, layer: LayerSpec) -> str:
        """Why ``layer`` cannot have this pattern; empty if it can."""
        _, rows, _ = layer.matrix_shape
        if self.kind in ("column", "row") and layer.groups > 1:
            return "whole columns and rows are not offered for grouped convolutions"
        if self.kind in ("n:m", "block") and layer.channels % self.width:
            return f"its {layer.channels} input channels per group are no multiple of {self.width}"
        if self.kind == "block" and rows % self.height:
            return f"its {rows} outputs per group are no multiple of {self.height}"
        return ""

    def atom(self, layer: LayerSpec) -> int:
        """Values in one atom."""
        values = {"column": layer.numel // layer.channels, "row": layer.columns, "block": self.height * self.width}
        return values.get(self.kind, 1)

    def atoms(self, layer: LayerSpec) -> int:
        return layer.numel // self.atom(layer)

    def kept(self, layer: LayerSpec, density: float) -> int:
        """Number of values kept at ``density``: whole atoms."""
        return round(density * self.atoms(layer)) * self.atom(layer)

    def computed(self, layer: LayerSpec, kept: int) -> int:
        """Values that a dense runtime multiplies with: it can leave out whole columns and rows alone."""
        return kept if self.kind in ("column", "row") or not kept else layer.numel


@cache
def pattern(name: str) -> Pattern:
    """``unstructured``, ``column``, ``row``, ``2:4`` (any n:m) or ``block4x4`` (any size).

    Raises:
        ValueError: none of these.
    """
    if name in ("unstructured", "column", "row"):
        return Pattern(name)  # type: ignore[arg-type]
    if (found := re.fullmatch(r"(\d{1,9}):(\d{1,9})", name, re.ASCII)) and 0 < int(found[1]) < int(found[2]):
        return Pattern("n:m", int(found[1]), int(found[2]))
    if (found := re.fullmatch(r"block(\d{1,9})x(\d{1,9})", name, re.ASCII)) and int(found[1]) * int(found[2]) > 1:
        return Pattern("block", int(found[1]), int(found[2]))
    raise ValueError(f"no pattern {name!r}; use unstructured, column, row, n:m such as 2:4, or a block such as block4x4")
