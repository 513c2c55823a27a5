"""Pattern: which values of S are kept or dropped together, and the registry of all patterns."""

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import TYPE_CHECKING, ClassVar, Literal

from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.registry import Registry

if TYPE_CHECKING:  # numpy takes a tenth of a second, which those who only read settings need not wait
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Layout:
    """How the values of a weight fall into atoms.

    Attributes:
        view: a shape of the weight's values, in their order.
        inner: the axes of ``view`` that run within an atom; the other axes, in order, number the atoms.
        quota_axis: the axis of ``view`` along which a pattern with a quota keeps so many.
    """

    view: tuple[int, ...]
    inner: tuple[int, ...] = ()
    quota_axis: int | None = None

    @property
    def outer(self) -> tuple[int, ...]:
        """``view`` with 1 for every inner axis: the shape of the atoms."""
        return tuple(1 if axis in self.inner else size for axis, size in enumerate(self.view))


class Pattern(ABC):
    """How S may be sparse; get one by :func:`pattern`.

    The unit that is kept or dropped whole is an *atom*; all atoms of a layer have equally many values. A pattern says by numbers
    alone which values form one (:meth:`layout`, :meth:`order`), which may be kept at all (:meth:`allowed`), and what a runtime
    leaves out (``drops``). From these follow fits, storage, modules, deployment, costs and latency: nothing else is to be done.

    Attributes:
        name: of the family of patterns, such as ``"block"``; one without parameters is called by it.
        usage: how its names read, in messages.
        drops: what of a layer a dense runtime leaves out with the atoms dropped. ``"inputs"``: atom i is all values of input channel i.
            ``"outputs"``: atom i is all values of output i. Empty: nothing, it multiplies with the zeros.
        free: any single values may be kept, so that the quickest search for them will do.
    """

    name: ClassVar[str]
    usage: ClassVar[str] = ""
    drops: ClassVar[Literal["", "inputs", "outputs"]] = ""
    free: ClassVar[bool] = False

    @classmethod
    def parse(cls, name: str) -> "Pattern | None":
        """The pattern called ``name``, if it is of this family."""
        return cls() if name == cls.name else None

    @property
    def density(self) -> float | None:
        """The one density that S may have, whose support then never grows or shrinks in training; None: any."""
        return None

    @property
    def quota(self) -> tuple[int, int] | None:
        """``(n, m)``: of every m atoms along the layout's ``quota_axis`` the n largest are kept; None: the largest of all."""
        return None

    def refusal(self, layer: LayerSpec) -> str:  # noqa: ARG002
        """Why ``layer`` cannot have this pattern; empty if it can."""
        return ""

    @abstractmethod
    def layout(self, layer: LayerSpec) -> Layout:
        """How the values ``(groups, rows, columns)``, in :meth:`order`, fall into atoms."""

    def order(self, layer: LayerSpec) -> "NDArray[np.int64] | None":  # noqa: ARG002
        """``(numel,)``: the value, flat, that stands at each place of the layout's view; None: as they are."""
        return None

    def allowed(self, layer: LayerSpec) -> "NDArray[np.bool_] | None":  # noqa: ARG002
        """``(atoms,)``: which atoms may be kept; None: all. Not read with a quota."""
        return None

    def atom(self, layer: LayerSpec) -> int:
        """Values in one atom."""
        layout = self.layout(layer)
        return prod(layout.view[axis] for axis in layout.inner)

    def atoms(self, layer: LayerSpec) -> int:
        return layer.numel // self.atom(layer)

    def choosable(self, layer: LayerSpec) -> int:
        """Number of atoms that may be kept."""
        allowed = self.allowed(layer)
        return self.atoms(layer) if allowed is None else int(allowed.sum())

    def kept(self, layer: LayerSpec, density: float) -> int:
        """Number of values kept at ``density``: whole atoms."""
        return min(round(density * self.atoms(layer)), self.choosable(layer)) * self.atom(layer)

    def computed(self, layer: LayerSpec, kept: int) -> int:
        """Values that a dense runtime multiplies with: it can leave out whole columns and rows alone."""
        return kept if self.drops or not kept else layer.numel


PATTERNS: Registry[type[Pattern]] = Registry(
    "pattern", "lrsearch.patterns", base="lrsearch.extend.Pattern", register="lrsearch.extend.PATTERNS.register",
    place="space.rules.patterns", made=lambda cls: cls,
)  # fmt: skip


def _split(layer: LayerSpec) -> tuple[int, int, int, int]:
    """``(groups, rows, channels, kernel)`` of a group."""
    groups, rows, columns = layer.matrix_shape
    return groups, rows, layer.channels, columns // layer.channels


@PATTERNS.register
@dataclass(frozen=True)
class Unstructured(Pattern):
    """Any values; an atom is one."""

    name = usage = "unstructured"
    free = True

    def layout(self, layer: LayerSpec) -> Layout:
        return Layout(layer.matrix_shape)

    def atom(self, layer: LayerSpec) -> int:  # noqa: ARG002
        return 1


class _Whole(Pattern):
    """Whole columns or rows of the weight."""

    def refusal(self, layer: LayerSpec) -> str:
        grouped = layer.groups > 1 or not layer.plain
        return "whole columns and rows are not offered for grouped, 3-D and transposed convolutions" if grouped else ""


@PATTERNS.register
@dataclass(frozen=True)
class Column(_Whole):
    """Whole input channels."""

    name = usage = "column"
    drops = "inputs"

    def layout(self, layer: LayerSpec) -> Layout:
        return Layout(_split(layer), (0, 1, 3))


@PATTERNS.register
@dataclass(frozen=True)
class Row(_Whole):
    """Whole outputs."""

    name = usage = "row"
    drops = "outputs"

    def layout(self, layer: LayerSpec) -> Layout:
        return Layout(_split(layer), (0, 2, 3))


@PATTERNS.register
@dataclass(frozen=True)
class NofM(Pattern):
    """n of every m neighbouring input channels, at each output and kernel position."""

    height: int
    width: int
    name = "n:m"
    usage = "n:m such as 2:4"

    @classmethod
    def parse(cls, name: str) -> "Pattern | None":
        found = re.fullmatch(r"(\d{1,9}):(\d{1,9})", name, re.ASCII)
        return cls(int(found[1]), int(found[2])) if found and 0 < int(found[1]) < int(found[2]) else None

    @property
    def density(self) -> float:
        return self.height / self.width

    @property
    def quota(self) -> tuple[int, int]:
        return self.height, self.width

    def refusal(self, layer: LayerSpec) -> str:
        return _multiple(layer, self.width)

    def layout(self, layer: LayerSpec) -> Layout:
        groups, rows, channels, kernel = _split(layer)
        return Layout((groups, rows, channels // self.width, self.width, kernel), quota_axis=3)


@PATTERNS.register
@dataclass(frozen=True)
class Block(Pattern):
    """``height x width`` values of neighbouring outputs and input channels at one kernel position."""

    height: int
    width: int
    name = "block"
    usage = "or a block such as block4x4"

    @classmethod
    def parse(cls, name: str) -> "Pattern | None":
        found = re.fullmatch(r"block(\d{1,9})x(\d{1,9})", name, re.ASCII)
        return cls(int(found[1]), int(found[2])) if found and int(found[1]) * int(found[2]) > 1 else None

    def refusal(self, layer: LayerSpec) -> str:
        _, rows, _ = layer.matrix_shape
        odd = f"its {rows} outputs per group are no multiple of {self.height}" if rows % self.height else ""
        return _multiple(layer, self.width) or odd

    def layout(self, layer: LayerSpec) -> Layout:
        groups, rows, channels, kernel = _split(layer)
        return Layout((groups, rows // self.height, self.height, channels // self.width, self.width, kernel), (2, 4))


def _multiple(layer: LayerSpec, width: int) -> str:
    return f"its {layer.channels} input channels per group are no multiple of {width}" if layer.channels % width else ""


@cache
def pattern(name: str) -> Pattern:
    """``unstructured``, ``column``, ``row``, ``2:4`` (any n:m), ``block4x4`` (any size), or one that was registered.

    Raises:
        ValueError: none of these.
    """
    found = _parsed(name)
    if found is None:
        PATTERNS.load_entry_points()
        found = _parsed(name)
    if found is None:
        known = ", ".join(family.usage or family.name for family in PATTERNS.values())
        raise ValueError(f"no pattern {name!r}; use {known}; {PATTERNS.own}")
    return found


def _parsed(name: str) -> Pattern | None:
    return next((found for family in PATTERNS.values() if (found := family.parse(name))), None)
