"""Every layer kind, pattern and registered format, and the plans that combine a format with a pattern.

Of all combinations those are tested in which every two of (layer, format, pattern) meet, for some layers of each kind; the rest
is marked ``slow``.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from pairwise import pairwise
from timm.layers import Conv2dSame
from torch import Tensor, nn

from lrsearch.compress.fit import Decomposition, FitProblem
from lrsearch.compress.inventory import inventory
from lrsearch.compress.matricize import gram, input_rows, to_matrix
from lrsearch.compress.modules import CompressedLayer, compressed_layer
from lrsearch.compress.sparsify import select
from lrsearch.spec.formats import FORMATS
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.pattern import pattern
from lrsearch.spec.plan import LayerPlan

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(16, 12),
    "linear no bias": lambda: nn.Linear(8, 12, bias=False),
    "linear 7 to 5": lambda: nn.Linear(7, 5),
    "linear 1 to n": lambda: nn.Linear(1, 12),
    "linear n to 1": lambda: nn.Linear(16, 1),
    "conv 1x1": lambda: nn.Conv2d(8, 12, 1),
    "conv 1x1 strided": lambda: nn.Conv2d(8, 12, 1, stride=(2, 3), padding=1, bias=False),
    "conv 1x1 grouped": lambda: nn.Conv2d(16, 8, 1, groups=2),
    "conv": lambda: nn.Conv2d(8, 12, 3),
    "conv padded": lambda: nn.Conv2d(8, 12, 3, padding=1, bias=False),
    "conv 1 to n": lambda: nn.Conv2d(1, 12, 3),
    "conv n to 1": lambda: nn.Conv2d(8, 1, 3),
    "conv same": lambda: nn.Conv2d(8, 12, 3, padding="same", dilation=(1, 2)),
    "conv same uneven": lambda: nn.Conv2d(8, 12, (2, 3), padding="same"),
    "conv reflect": lambda: nn.Conv2d(8, 12, 3, padding=(2, 1), padding_mode="reflect"),
    "conv circular": lambda: nn.Conv2d(8, 12, 3, stride=2, padding=(0, 2), padding_mode="circular"),
    "conv strided": lambda: nn.Conv2d(8, 12, 3, stride=2, padding=1),
    "conv strided across": lambda: nn.Conv2d(8, 12, 3, stride=(1, 3), padding=(0, 1)),
    "conv dilated": lambda: nn.Conv2d(8, 12, 3, padding=(2, 1), dilation=2),
    "conv 3x2": lambda: nn.Conv2d(8, 12, (3, 2), stride=(2, 1), padding=(1, 0)),
    "conv 1x5": lambda: nn.Conv2d(8, 12, (1, 5), stride=(2, 1), padding=(0, 1)),
    "conv 5x1": lambda: nn.Conv2d(8, 12, (5, 1), stride=(1, 2), padding=(2, 0)),
    "conv grouped": lambda: nn.Conv2d(16, 8, 3, stride=(2, 1), padding=1, groups=2),
    "conv depthwise": lambda: nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=8),
    "conv timm same": lambda: Conv2dSame(8, 12, 3, stride=2),
    "conv1d 1": lambda: nn.Conv1d(8, 12, 1),
    "conv1d strided": lambda: nn.Conv1d(8, 12, 3, stride=2, padding=1),
    "conv1d dilated": lambda: nn.Conv1d(8, 12, 3, dilation=2, padding=2, padding_mode="circular", bias=False),
    "conv1d grouped": lambda: nn.Conv1d(16, 8, 3, groups=2),
    "conv1d depthwise": lambda: nn.Conv1d(8, 16, 3, padding=1, groups=8),
    "conv3d": lambda: nn.Conv3d(4, 6, (2, 3, 2), stride=(1, 2, 1), padding=(1, 0, 1)),
    "conv3d grouped": lambda: nn.Conv3d(4, 6, (1, 3, 2), 1, (0, 1, 1), (1, 1, 2), 2, bias=False, padding_mode="circular"),
    "conv transposed": lambda: nn.ConvTranspose2d(8, 6, (3, 2), stride=2, padding=(1, 0), output_padding=(1, 0)),
    "conv transposed grouped": lambda: nn.ConvTranspose2d(8, 4, 2, stride=(1, 2), groups=2, dilation=(2, 1), bias=False),
    "conv transposed depthwise": lambda: nn.ConvTranspose2d(8, 8, 2, stride=2, groups=8),
    "conv1d transposed": lambda: nn.ConvTranspose1d(8, 6, 4, stride=2, padding=1),
}
QUICK = (  # of every kind, strided, grouped, dilated, padded as torch and as timm do; the others are slow
    "linear", "linear no bias", "linear 1 to n", "linear n to 1", "conv 1x1 grouped", "conv", "conv n to 1", "conv same uneven",
    "conv reflect", "conv dilated", "conv grouped", "conv depthwise", "conv timm same", "conv1d strided", "conv3d",
    "conv transposed grouped",
)  # fmt: skip
PATTERNS = {"unstructured": 0.3, "2:4": 0.5, "4:8": 0.5, "block4x1": 0.4, "block2x2": 0.4, "column": 0.5, "row": 0.5}
RATIO = 0.3
DENSER, HIGHER = ("unstructured", "block2x2", "row"), ("unstructured", "2:4", "column")  # fitted again with other densities and ranks


def build(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A fresh layer, with the same weights at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LAYERS[name]().to(dtype).eval()


@cache
def inputs(name: str, dtype: torch.dtype = torch.float32, examples: int = 2) -> Tensor:
    """Correlated, partly non-negative inputs, not as high as wide; ``(examples, ...)``."""
    layer, generator = build(name), torch.Generator().manual_seed(1)
    if isinstance(layer, nn.Linear):
        shape, channel = (examples, 9, layer.in_features), 2
    else:
        sizes = {1: (11,), 2: (8, 7), 3: (4, 5, 6)}[len(layer.kernel_size)]
        shape, channel = (examples, layer.in_channels, *sizes), 1
    x = torch.randn(shape, generator=generator)
    return ((x + 0.7 * x.roll(1, channel)).relu() + 0.3 * torch.randn(shape, generator=generator)).to(dtype)


@cache
def spec_of(name: str) -> LayerSpec:
    """The layer's spec, with the positions of :func:`inputs`; it is named ``"0"``, its name in an nn.Sequential."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using padding='same' with even kernel")  # torch says so once
        return inventory(nn.Sequential(build(name)), inputs(name)).layers[0]


@dataclass(frozen=True, repr=False)
class Case:
    """One layer under one plan."""

    layer: str
    plan: LayerPlan

    @property
    def spec(self) -> LayerSpec:
        return spec_of(self.layer)

    @property
    def row(self) -> tuple[str, str | None, str | None]:
        """Layer, format and pattern."""
        return self.layer, self.plan.format if self.plan.rank else None, self.plan.pattern if self.plan.density else None

    def __repr__(self) -> str:
        return f"{self.layer}, {self.plan}"


def plan_of(spec: LayerSpec, form: str | None, kind: str | None, ratio: float = RATIO) -> LayerPlan:
    """L of ``ratio`` of the largest rank (of 1 where the format is refused) and S in the pattern's own density."""
    low_rank = ("dense", ()) if form is None else (form, (1,) if FORMATS[form].refusal(spec) else FORMATS[form].rank(spec, ratio))
    return LayerPlan(*low_rank, PATTERNS[kind] if kind else 0.0, kind or "unstructured")


def _cases() -> Iterator[Case]:
    for name in LAYERS:
        for form in (None, *FORMATS):
            for kind in (None, *PATTERNS) if form else PATTERNS:
                yield Case(name, plan_of(spec_of(name), form, kind))


ALL = tuple(_cases())
CASES = tuple(case for case in ALL if not case.plan.refusal(case.spec))
REFUSED = tuple(case for case in ALL if case.plan.refusal(case.spec))


def of_layer(name: str, form: str | None = None) -> list[Case]:
    """The cases of one layer, of one format if given (``"dense"``: sparse only)."""
    return [case for case in CASES if case.layer == name and form in (None, case.plan.format)]


def each_group_of(*names: str) -> pytest.MarkDecorator:
    """``cases`` are of one layer each time: few in which every two values meet, and behind the marker all others."""
    few = set(pairwise(case.row for case in CASES if case.layer in names))
    met = [
        pytest.param([case for case in of_layer(name) if case.row in few], id=name, marks=() if name in QUICK else pytest.mark.slow)
        for name in names
    ]
    others = [(name, [case for case in of_layer(name) if case.row not in few]) for name in names]
    slow = [pytest.param(cases, id=f"{name}, all others", marks=pytest.mark.slow) for name, cases in others if cases]
    return pytest.mark.parametrize("cases", met + slow)


def each_few(arguments: tuple[str, ...], rows: Iterable[tuple[str, ...]], few: Iterable[tuple[str, ...]] = ()) -> pytest.MarkDecorator:
    """The few rows, if none are given those in which every two values meet, and behind the marker all others."""
    few = set(few or pairwise(rows := list(rows)))
    marked = [pytest.param(*row, marks=() if row in few else pytest.mark.slow) for row in rows]
    return pytest.mark.parametrize(arguments, marked)


each_group = each_group_of(*LAYERS)
ACCEPTED = [(name, form) for name in LAYERS for form in FORMATS if not FORMATS[form].refusal(spec_of(name))]
SHAPES = {(spec_of(n).kind, spec_of(n).weight_shape, spec_of(n).groups): n for n in reversed(LAYERS)}  # a fit sees nothing else
each_shape = pytest.mark.parametrize("name", [n for n in LAYERS if n in SHAPES.values()])
each_format = pytest.mark.parametrize(("name", "form"), [pair for pair in ACCEPTED if pair[0] in SHAPES.values()])
each_layer = pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in LAYERS])
FITTED = (  # a fit is made for these, and behind the marker for one of each shape
    "linear", "linear 1 to n", "linear n to 1", "conv 1x1 grouped", "conv", "conv n to 1", "conv same uneven", "conv grouped",
    "conv1d strided",
)  # fmt: skip


def alternates(row: tuple[str, str | None, str | None]) -> bool:
    """Whether factors and S are fitted in turns for some tenths of a second, as L is neither an SVD nor alone."""
    return row[1] not in (None, "svd") and row[2] is not None


def _in_turn() -> Iterator[Case]:
    """Of every shape and format the first case and one of the rest, each time another from shape to shape."""
    for form in ("dense", *FORMATS):
        groups = [cases for name in LAYERS if name in SHAPES.values() and (cases := of_layer(name, form))]
        for i, (first, *rest) in enumerate(groups):
            yield from (first, rest[i % len(rest)]) if rest else (first,)


def each_fitted(of: Callable[[Case], bool] = bool, quick: Callable[[Case], bool] = bool) -> pytest.MarkDecorator:
    """``case``: of the layers of ``FITTED`` few in which every two values meet; slow are those not ``quick``, and some of all shapes."""
    few = set(pairwise((case.row for case in CASES if case.layer in FITTED), alternates))
    others = {case.row for case in _in_turn()} - few
    found = [case for case in CASES if case.row in few | others and of(case)]
    return pytest.mark.parametrize(
        "case", [pytest.param(case, id=repr(case), marks=() if case.row in few and quick(case) else pytest.mark.slow) for case in found]
    )


@cache
def random_fit(spec: LayerSpec, plan: LayerPlan, seed: int = 2) -> Decomposition:
    """Any L and S of the plan: what must hold for every one of them needs no fit."""
    generator = torch.Generator().manual_seed(seed)
    shapes = FORMATS[plan.format].shapes(spec, plan.rank) if plan.rank else ()
    s = torch.randn(spec.matrix_shape, generator=generator)
    mask = select(s, spec, pattern(plan.pattern), plan.kept(spec))
    return Decomposition(spec, plan, tuple(torch.randn(f, generator=generator) / 2 for f in shapes), s * mask, mask)


def compressed(case: Case, dtype: torch.dtype = torch.float32) -> CompressedLayer:
    return compressed_layer(build(case.layer, dtype), case.spec, case.plan, random_fit(case.spec, case.plan)).eval()


@cache
def problem_of(name: str) -> FitProblem:
    """The layer's own weight under inputs that are many enough."""
    layer, spec = build(name), spec_of(name)
    rows = input_rows(layer, inputs(name, examples=24))
    return FitProblem(spec, to_matrix(layer.get_parameter("weight").detach(), spec), gram(rows) / rows.shape[1])


@cache
def fit(name: str, plan: LayerPlan) -> Decomposition:
    return problem_of(name).fit(plan)


def error(name: str, fitted: Decomposition) -> float:
    """Output error as a share of the output's energy."""
    problem = problem_of(name)
    return problem.error(fitted.effective()) / problem.error(torch.zeros_like(problem.weight))
