"""The search space: which layers may take which formats, ranks and densities."""

from fnmatch import fnmatchcase
from math import exp, log
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lrsearch.errors import ConfigError
from lrsearch.spec.cost import layer_cost
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.plan import LayerPlan

Family = Literal["sparse", "low-rank", "low-rank+sparse"]
FAMILIES: tuple[Family, ...] = ("sparse", "low-rank", "low-rank+sparse")


class Strict(BaseModel):
    """Frozen plain data; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Range(Strict):
    """``steps`` values from ``min`` to ``max``, evenly spaced in ratio."""

    min: Annotated[float, Field(gt=0, le=1)]
    max: Annotated[float, Field(gt=0, le=1)]
    steps: Annotated[int, Field(ge=1, le=100)]

    @model_validator(mode="after")
    def _ordered(self) -> "Range":
        if self.min > self.max:
            raise ValueError("min must not exceed max")
        return self

    def values(self) -> list[float]:
        if self.steps == 1:
            return [self.max]
        step = log(self.max / self.min) / (self.steps - 1)
        return [round(self.min * exp(i * step), 4) for i in range(self.steps)]


class Rule(Strict):
    """What the layers matching ``layers`` (globs over qualified names) and not ``exclude`` may become."""

    layers: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    families: tuple[Family, ...] = FAMILIES
    density: Range = Range(min=0.02, max=0.85, steps=14)
    rank_ratio: Range = Range(min=0.06, max=0.5, steps=5)
    combined_density: Range = Range(min=0.02, max=0.3, steps=5)

    def covers(self, name: str) -> bool:
        return any(fnmatchcase(name, g) for g in self.layers) and not any(fnmatchcase(name, g) for g in self.exclude)


class Space(Strict):
    """Rules in order; the first that covers a layer decides, a layer without a rule stays dense."""

    rules: tuple[Rule, ...] = (Rule(),)

    def menus(self, layers: tuple[LayerSpec, ...], refused: dict[str, str] | None = None) -> dict[str, list[LayerPlan]]:
        """Layer name → the choices it has; dense first, then none that is as large as dense.

        Raises:
            ConfigError: a glob matches no layer.
        """
        names = [layer.name for layer in layers]
        for rule in self.rules:
            for pattern in (*rule.layers, *rule.exclude):
                if not any(fnmatchcase(n, pattern) for n in (*names, *(refused or {}))):
                    raise ConfigError(
                        "every layer pattern must match a compressible layer", value=pattern, place="space.rules",
                        remedy=f"The model has {', '.join(names[:6])}{', …' if len(names) > 6 else ''}.",
                    )
        rules = {layer: next((r for r in self.rules if r.covers(layer.name)), None) for layer in layers}
        return {layer.name: [LayerPlan(), *(_choices(layer, rule) if rule else ())] for layer, rule in rules.items()}


def _choices(layer: LayerSpec, rule: Rule) -> list[LayerPlan]:
    ranks = sorted({max(1, round(q * layer.max_rank)) for q in rule.rank_ratio.values()}) if layer.max_rank else []
    choices = []
    if "sparse" in rule.families:
        choices += [LayerPlan(density=d) for d in rule.density.values()]
    if "low-rank" in rule.families:
        choices += [LayerPlan("svd", r, 0.0) for r in ranks]
    if "low-rank+sparse" in rule.families:
        choices += [LayerPlan("svd", r, d) for r in ranks for d in rule.combined_density.values()]
    return [c for c in choices if c.kept(layer) != layer.numel and 0 < layer_cost(layer, c).params < layer.numel]
