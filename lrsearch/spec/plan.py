"""Plan: what every layer becomes. Frozen, JSON, with a fingerprint."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from lrsearch.errors import ArtifactError
from lrsearch.spec.formats import FORMATS, Rank
from lrsearch.spec.html_table import html_table
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.pattern import pattern


@dataclass(frozen=True)
class LayerPlan:
    """W ≈ L + S for one layer.

    ``format`` and ``rank`` say what L is (``"dense"``: there is no L), ``density`` and
    ``pattern`` how many values of S are kept, and which together. So ``LayerPlan()`` leaves the
    layer as it is, ``LayerPlan(density=0.3)`` is sparse only, ``LayerPlan("svd", (8,), 0.0)``
    low-rank only.

    Raises:
        ValueError: the four do not fit together.
    """

    format: str = "dense"
    rank: Rank = ()
    density: float = 1.0
    pattern: str = "unstructured"

    def __post_init__(self) -> None:
        object.__setattr__(self, "rank", tuple(self.rank))
        positive = all(isinstance(r, int) and r > 0 for r in self.rank) and 0.0 <= self.density <= 1.0
        if not positive or bool(self.rank) != (self.format != "dense") or (self.rank and self.format not in FORMATS):
            own = "" if self.format == "dense" or self.format in FORMATS else f"; {FORMATS.own}"
            known = ", ".join(["dense", *FORMATS])
            raise ValueError(f"no such layer plan: {self.format!r} (one of {known}), rank {self.rank}, density {self.density}{own}")
        fixed = pattern(self.pattern).density
        if fixed is not None and self.density not in (0.0, fixed):
            raise ValueError(f"pattern {self.pattern!r} has density {fixed}, not {self.density}")
        if self.density in (0.0, 1.0):
            object.__setattr__(self, "pattern", "unstructured")

    @property
    def untouched(self) -> bool:
        return self.format == "dense" and self.density == 1.0

    @property
    def zero(self) -> bool:
        """Whether nothing is left but the bias."""
        return not self.rank and not self.density

    @property
    def executed(self) -> "LayerPlan":
        """What a dense runtime executes: with an S that is not of whole columns or rows it multiplies as with a
        dense weight, into which L then goes too."""
        whole = not self.density or bool(pattern(self.pattern).drops)
        return self if whole else LayerPlan()

    @property
    def family(self) -> str:
        """``dense``, ``sparse``, ``low-rank`` or ``low-rank+sparse``."""
        if self.rank:
            return "low-rank+sparse" if self.density else "low-rank"
        return "dense" if self.untouched else "sparse"

    def kept(self, layer: LayerSpec) -> int:
        """Number of non-zeros of S."""
        return pattern(self.pattern).kept(layer, self.density)

    def refusal(self, layer: LayerSpec) -> str:
        """Why ``layer`` cannot become this; empty if it can."""
        form = FORMATS.get(self.format)
        low_rank = form.refusal(layer) if form else ""
        if form and not low_rank and len(self.rank) != (modes := len(form.max_rank(layer))):
            low_rank = f"{self.format} takes {modes} ranks there, not {len(self.rank)}"
        return low_rank or (pattern(self.pattern).refusal(layer) if self.density else "")

    def __str__(self) -> str:
        low_rank = f"{self.format} rank {'-'.join(map(str, self.rank))}" if self.rank else ""
        which = "" if self.pattern == "unstructured" else f" {self.pattern}"
        sparse = f"density {self.density:g}{which}" if self.density and not self.untouched else ""
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

    def __repr__(self) -> str:
        return f"Plan({'; '.join(f'{name}: {layer}' for name, layer in self.layers.items()) or 'all layers dense'})"

    def _repr_html_(self) -> str:
        return html_table(("layer", "becomes"), self.layers.items())

    def to_dict(self) -> dict[str, dict[str, Any]]:
        return {
            name: {"format": p.format, "rank": list(p.rank), "density": p.density, "pattern": p.pattern}
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
