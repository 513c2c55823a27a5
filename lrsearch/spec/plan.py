"""Plan: what every layer becomes. Frozen, JSON, with a fingerprint."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from lrsearch.errors import ArtifactError
from lrsearch.spec.layer import LayerSpec

Format = Literal["dense", "svd"]


@dataclass(frozen=True)
class LayerPlan:
    """W ≈ L + S for one layer.

    ``format`` and ``rank`` say what L is (``"dense"``: there is no L), ``density`` the
    fraction of non-zeros of S. So ``LayerPlan()`` leaves the layer as it is,
    ``LayerPlan(density=0.3)`` is sparse only, ``LayerPlan("svd", 8, 0.0)`` low-rank only.

    Raises:
        ValueError: the three do not fit together.
    """

    format: Format = "dense"
    rank: int = 0
    density: float = 1.0

    def __post_init__(self) -> None:
        whole = isinstance(self.rank, int) and self.rank >= 0 and 0.0 <= self.density <= 1.0
        if not whole or self.format not in ("dense", "svd") or (self.rank > 0) != (self.format == "svd"):
            raise ValueError(f"no such layer plan: {self.format!r}, rank {self.rank}, density {self.density}")

    @property
    def untouched(self) -> bool:
        return self.format == "dense" and self.density == 1.0

    @property
    def family(self) -> str:
        """``dense``, ``sparse``, ``low-rank`` or ``low-rank+sparse``."""
        if self.rank:
            return "low-rank+sparse" if self.density else "low-rank"
        return "dense" if self.untouched else "sparse"

    def kept(self, layer: LayerSpec) -> int:
        """Number of non-zeros of S."""
        return round(self.density * layer.numel)

    def __str__(self) -> str:
        low_rank = f"svd rank {self.rank}" if self.rank else ""
        sparse = f"density {self.density:g}" if self.density and not self.untouched else ""
        return " + ".join(filter(None, (low_rank, sparse))) or ("dense" if self.untouched else "zero")


@dataclass(frozen=True)
class Plan:
    """Layer name → LayerPlan; layers not named stay dense."""

    layers: Mapping[str, LayerPlan] = field(default_factory=dict)

    def __post_init__(self) -> None:
        touched = {k: v for k, v in sorted(self.layers.items()) if not v.untouched}
        object.__setattr__(self, "layers", MappingProxyType(touched))

    def __getitem__(self, name: str) -> LayerPlan:
        return self.layers.get(name, LayerPlan())

    def to_dict(self) -> dict[str, dict[str, Any]]:
        return {
            name: {"format": p.format, "rank": p.rank, "density": p.density}
            for name, p in self.layers.items()
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Mapping[str, Any]], place: str = "plan") -> "Plan":
        """Inverse of :meth:`to_dict`.

        Raises:
            ArtifactError: a layer's entry is not a format, a rank and a density.
        """
        try:
            return cls({name: LayerPlan(**entry) for name, entry in data.items()})
        except (TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(
                "each layer needs a format, a rank and a density that fit together",
                value=str(error), place=place, remedy="Write the plan again with lrsearch.",
            ) from None

    @property
    def fingerprint(self) -> str:
        """12 hex digits; equal for equal plans."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]
