"""The search space: which layers may take which formats, ranks and densities."""

from collections.abc import Callable, Collection, Sequence
from fnmatch import fnmatchcase
from math import ceil, exp, log
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from lrsearch.errors import ConfigError
from lrsearch.spec.cost import BY_SHAPE, layer_cost
from lrsearch.spec.formats import FORMATS, Format, Rank
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.pattern import pattern
from lrsearch.spec.plan import LayerPlan

MOST = 1_000_000_000  # of anything counted: no study has more, and products of two still fit 64 bits
LARGEST_SEED = 2**32 - 1  # what NumPy takes
Positive = Annotated[int, Field(ge=1, le=MOST)]
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
DOTTED = r"^[\w.]+:[\w.]+$"
DottedPath = Annotated[str, Field(pattern=DOTTED)]
Multiple = Positive | Literal["auto"]
Family = Literal["sparse", "low-rank", "low-rank+sparse"]
STEP = 16  # float32 values in the widest vector of current CPUs
FAMILIES: tuple[Family, ...] = ("sparse", "low-rank", "low-rank+sparse")


class Strict(BaseModel):
    """Frozen plain data; unknown keys are errors, and so are numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


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
    """What the layers matching ``layers`` (globs over qualified names) and not ``exclude`` may become.

    ``density`` is of S alone and ``rank_ratio`` of L alone; together they take ``combined_density`` and ``combined_rank_ratio``,
    as a few ranks beside a dense S leave the least error, where S alone does not. They are of ``combined_formats`` and
    ``combined_patterns`` if given, else of ``formats`` and ``patterns``.

    Ranks are whole multiples of ``rank_multiple``, as long as the layer has such. Latency is a staircase over the rank,
    with steps that depend on layer and backend: ``auto`` offers ranks and the multiples of 16 above them, and keeps
    those that a measured table shows to be the largest of their step. Whole columns and rows that are kept are whole multiples of
    ``channel_multiple``, fewer than all.
    """

    layers: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    families: tuple[Family, ...] = FAMILIES
    formats: tuple[str, ...] = ("svd",)
    patterns: tuple[str, ...] = ("unstructured",)
    density: Range = Range(min=0.02, max=0.85, steps=14)
    rank_ratio: Range = Range(min=0.06, max=0.5, steps=5)
    combined_rank_ratio: Range = Range(min=0.01, max=0.1, steps=4)
    combined_density: Range = Range(min=0.15, max=0.65, steps=5)
    combined_formats: tuple[str, ...] | None = None
    combined_patterns: tuple[str, ...] | None = None
    rank_multiple: Multiple = 1
    channel_multiple: Positive = 1

    @field_validator("formats", "combined_formats")
    @classmethod
    def _formats(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if unknown := next(filter(None, map(FORMATS.refusal, value or ())), ""):
            raise ValueError(unknown)
        return value

    @field_validator("patterns", "combined_patterns")
    @classmethod
    def _patterns(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for name in value or ():
            pattern(name)
        return value

    def covers(self, name: str) -> bool:
        return any(fnmatchcase(name, g) for g in self.layers) and not any(fnmatchcase(name, g) for g in self.exclude)


class Space(Strict):
    """Rules in order; the first that covers a layer decides, a layer without a rule stays dense.

    ``split`` has globs over fused query-key-value layers, each of which becomes three layers
    ``q``, ``k`` and ``v`` below its own name before anything else is done.
    """

    split: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = (Rule(),)

    def menus(
        self, layers: tuple[LayerSpec, ...], refused: dict[str, str] | None = None, counted: Collection[str] = (),
    ) -> dict[str, list[LayerPlan]]:
        """Layer name → the choices it has; dense first, then none that is as large as dense.

        Args:
            counted: metrics; if given, a choice lowers at least one. One that is not known from a layer's shape is lowered by any.

        Raises:
            ConfigError: a glob matches no layer.
        """
        names = [layer.name for layer in layers]
        for rule in self.rules:
            for glob in (*rule.layers, *rule.exclude):
                if not any(fnmatchcase(n, glob) for n in (*names, *(refused or {}))):
                    raise ConfigError(
                        "every layer pattern must match a compressible layer", value=glob, place="space.rules",
                        remedy=f"The model has {', '.join(names[:6])}{', …' if len(names) > 6 else ''}.",
                    )
        rules = {layer: self.rule(layer.name) for layer in layers}
        return {layer.name: [LayerPlan(), *(_choices(layer, rule, frozenset(counted)) if rule else ())] for layer, rule in rules.items()}

    def rule(self, name: str) -> Rule | None:
        """The rule that decides about layer ``name``."""
        return next((r for r in self.rules if r.covers(name)), None)


def _choices(layer: LayerSpec, rule: Rule, counted: frozenset[str]) -> list[LayerPlan]:
    def low_rank(formats: tuple[str, ...], ratio: Range) -> list[tuple[str, Rank]]:
        return [(f, r) for f in formats for r in _ranks(layer, FORMATS[f], ratio, rule.rank_multiple)]

    choices = []
    if "sparse" in rule.families:
        choices += [LayerPlan("dense", (), d, p) for d, p in _sparse(layer, rule, rule.patterns, rule.density)]
    if "low-rank" in rule.families:
        choices += [LayerPlan(f, r, 0.0) for f, r in low_rank(rule.formats, rule.rank_ratio)]
    if "low-rank+sparse" in rule.families:
        formats, patterns = rule.combined_formats or rule.formats, rule.combined_patterns or rule.patterns
        densities = _sparse(layer, rule, patterns, rule.combined_density)
        choices += [LayerPlan(f, r, d, p) for f, r in low_rank(formats, rule.combined_rank_ratio) for d, p in densities]
    return [c for c in dict.fromkeys(choices) if _useful(layer, c, counted)]


def _ranks(layer: LayerSpec, form: Format, ratio: Range, multiple: Multiple) -> list[Rank]:
    if form.refusal(layer):
        return []
    most, ranks = form.max_rank(layer), {form.rank(layer, q) for q in ratio.values()}
    if multiple == "auto":
        ranks |= {_to_multiple(rank, most, STEP, ceil) for rank in ranks}
    else:
        ranks = {_to_multiple(rank, most, multiple, round) for rank in ranks}
    return sorted(ranks)


def _to_multiple(rank: Rank, most: Rank, multiple: int, rounded: Callable[[float], int]) -> Rank:
    """Each rank as the multiple next to it, at least one and none above ``most``."""
    return tuple(min(m, max(1, rounded(r / multiple)) * multiple) for r, m in zip(rank, most, strict=True))


def _sparse(layer: LayerSpec, rule: Rule, patterns: tuple[str, ...], density: Range) -> list[tuple[float, str]]:
    found = []
    for name in patterns:
        only, values = pattern(name).density, density.values()
        if pattern(name).drops and not pattern(name).refusal(layer):
            values = _to_channels(pattern(name).atoms(layer), rule.channel_multiple, values)
        found += [(d, name) for d in (values if only is None else [only])]
    return found


def _to_channels(channels: int, multiple: int, densities: Sequence[float]) -> list[float]:
    """``densities`` that keep a multiple of so many channels, at least one multiple and fewer than all."""
    if multiple == 1:
        return list(densities)
    kept = {max(1, round(d * channels / multiple)) * multiple for d in densities}
    return [k / channels for k in sorted(kept) if k < channels]


def _useful(layer: LayerSpec, choice: LayerPlan, counted: frozenset[str]) -> bool:
    if choice.refusal(layer) or (choice.density and not 0 < choice.kept(layer) < layer.numel):
        return False
    cost, dense = layer_cost(layer, choice), layer_cost(layer, LayerPlan())
    lowers = not counted <= BY_SHAPE or any(getattr(cost, m) < getattr(dense, m) for m in counted or ("params",))
    return 0 < cost.params < layer.numel and lowers
