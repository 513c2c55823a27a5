"""Format: the shapes and costs of a low-rank part, and the registry of all formats."""

from abc import ABC, abstractmethod
from math import prod
from typing import ClassVar

from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.registry import Registry

Rank = tuple[int, ...]
Shapes = tuple[tuple[int, ...], ...]


class Format(ABC):
    """What a low-rank format costs; how it is fitted and computed is up to the floor above."""

    name: ClassVar[str]

    @abstractmethod
    def refusal(self, layer: LayerSpec) -> str:
        """Why ``layer`` cannot have this format; empty if it can."""

    @abstractmethod
    def max_rank(self, layer: LayerSpec) -> Rank:
        """The ranks at which every weight of the layer's shape is reached."""

    @abstractmethod
    def shapes(self, layer: LayerSpec, rank: Rank) -> Shapes:
        """Shapes of the factors."""

    @abstractmethod
    def macs(self, layer: LayerSpec, rank: Rank) -> int:
        """Multiply-accumulates per example of contracting an input with the factors."""

    def chained(self, layer: LayerSpec) -> bool:  # noqa: ARG002
        """Whether L is a chain of convolutions (or linear maps), the last of which has a row per output."""
        return False

    def params(self, layer: LayerSpec, rank: Rank) -> int:
        return sum(prod(shape) for shape in self.shapes(layer, rank))

    def rank(self, layer: LayerSpec, ratio: float) -> Rank:
        """``ratio`` of the largest rank, at least 1, in every mode."""
        return tuple(max(1, round(ratio * r)) for r in self.max_rank(layer))


_HOME = "lrsearch.compress.formats"
FORMATS: Registry[Format] = Registry(
    "format", "lrsearch.formats", base="lrsearch.extend.LowRank", register="lrsearch.extend.FORMATS.register", place="space.rules.formats",
    builtin={
        "cp": f"{_HOME}.cp", "svd": f"{_HOME}.svd", "spatial-svd": f"{_HOME}.svd", "tt": f"{_HOME}.tt", "tucker2": f"{_HOME}.tucker",
    },
    reserved=("dense",),
)  # fmt: skip
register = FORMATS.register
