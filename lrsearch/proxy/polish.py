"""Polish: a chosen plan's layers fitted once more, each against the inputs it will really see.

One forward pass does it. Its batch holds every example twice: the first half goes through the
dense layers, the second through the compressed ones, and each layer is fitted when its inputs
arrive, all layers before it being final by then.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lrsearch.compress.fit import DAMPING, Decomposition, FitProblem, best_shrinkage
from lrsearch.compress.inventory import inference
from lrsearch.compress.matricize import gram, input_rows, to_matrix
from lrsearch.errors import ModelError
from lrsearch.proxy.calibrate import norms, shifted
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.plan import LayerPlan, Plan

MEMORY_CAP = 6 * 2**30
ROWS_CHUNK = 2**22
CHECK_SHARE = 0.25


@dataclass
class Polished:
    """What a polish found.

    Attributes:
        fits: of every layer of the plan.
        tensors: new biases and BatchNorm statistics, by their names in the state dict.
    """

    fits: dict[str, Decomposition] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)


def polish(dense: nn.Module, layers: Iterable[LayerSpec], plan: Plan, x: Tensor) -> Polished:
    """Fit the layers of ``plan`` in forward order, and correct biases and BatchNorm statistics.

    A layer is fitted to what the dense network computes there, min E‖W x − (L + S) x̂‖², x̂ being
    its input in the compressed network. A bias takes up the mean of what is left; BatchNorm
    statistics move by as much as the compressed network's differ from the dense one's.

    Args:
        dense: the dense model, left as it was.
        layers: specs of at least the layers in ``plan``.
        plan: what each layer becomes.
        x: calibration inputs, as many as :func:`examples_that_fit` allows.

    Raises:
        ModelError: a layer's input does not keep the examples of a batch apart.
    """
    twin = _Twin(dense, {spec.name: spec for spec in layers}, plan)
    twin.refuse_mixing(x[:1])
    with _hooked({**dict.fromkeys(twin.layers, twin.fit_layer), **dict.fromkeys(norms(twin.model), twin.shift_norm)}):
        twin.run(x)
    return twin.found


class _Twin:
    """A copy of the dense model whose second half of the batch is the compressed network."""

    def __init__(self, dense: nn.Module, specs: Mapping[str, LayerSpec], plan: Plan) -> None:
        self.dense, self.model, self.specs, self.plan = dense, copy.deepcopy(dense), specs, plan
        self.names = {m: n for n, m in self.model.named_modules()}
        self.layers = [self.model.get_submodule(name) for name in plan.layers]
        self.found, self._settled = Polished(), dict[nn.Module, dict[str, Tensor]]()

    def run(self, x: Tensor) -> None:
        with inference(self.model):
            self.model(torch.cat([x, x]))

    def fit_layer(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Forward hook of a layer: fit it at its first call, then compute the second half with the fit."""
        if module not in self._settled:
            name, (theirs, ours) = self.names[module], inputs[0].chunk(2)
            fit = _fit(module, self.specs[name], self.plan[name], theirs, ours)
            tensors = {"weight": fit.effective().view_as(module.get_parameter("weight")).to(output.dtype)}
            if isinstance(bias := getattr(module, "bias", None), Tensor):
                channel = -1 if isinstance(module, nn.Linear) else 1
                missing = output.chunk(2)[0] - self._computed(module, tensors, ours)
                tensors["bias"] = self.found.tensors[f"{name}.bias"] = bias + missing.movedim(channel, 0).flatten(1).mean(1)
            self.found.fits[name], self._settled[module] = fit, tensors
        return self._replaced(module, inputs[0], output)

    def shift_norm(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Forward hook of a BatchNorm: shift its statistics, then compute the second half with them."""
        if module not in self._settled:
            dense, seen = (_mean_and_variance(half) for half in inputs[0].chunk(2))
            mean, variance = shifted((module.get_buffer("running_mean"), module.get_buffer("running_var")), dense, seen)
            tensors = {"running_mean": mean, "running_var": variance}
            self.found.tensors |= {f"{self.names[module]}.{key}": value for key, value in tensors.items()}
            self._settled[module] = tensors
        return self._replaced(module, inputs[0], output)

    def _computed(self, module: nn.Module, tensors: dict[str, Tensor], x: Tensor) -> Tensor:
        result: Tensor = torch.func.functional_call(self.dense.get_submodule(self.names[module]), tensors, (x,))
        return result

    def _replaced(self, module: nn.Module, x: Tensor, output: Tensor) -> Tensor:
        return torch.cat([output.chunk(2)[0], self._computed(module, self._settled[module], x.chunk(2)[1])])

    def refuse_mixing(self, x: Tensor) -> None:
        """Check on one example, given twice, that every layer sees two equal halves.

        Raises:
            ModelError: one does not.
        """

        def compare(module: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
            halves = inputs[0].chunk(2)
            if len(halves) != 2 or halves[0].shape != halves[1].shape or not torch.allclose(*halves, rtol=1e-3, atol=1e-4):
                raise ModelError(
                    "a polish needs the examples of a batch apart, along the first axis of every layer's input",
                    value=tuple(inputs[0].shape), place=self.names[module], remedy="Use the plan without polish.",
                )

        with _hooked(dict.fromkeys([*self.layers, *norms(self.model)], compare)):
            self.run(x)


def _fit(module: nn.Module, spec: LayerSpec, plan: LayerPlan, dense: Tensor, ours: Tensor) -> Decomposition:
    """The fit of W E[xx̂ᵀ] E[x̂x̂ᵀ]⁻¹, the best weight for the inputs x̂; damping pulls it to W.

    With a bias, which can make up for any mean, deviations from the means are fitted.

    Args:
        module: the dense layer.
        spec: its spec.
        plan: what it becomes.
        dense: x, its input in the dense network.
        ours: x̂, its input in the compressed one.
    """
    weight = to_matrix(module.get_parameter("weight").detach().float(), spec.groups)
    cut = max(1, round(len(ours) * (1 - CHECK_SHARE)))
    centred = getattr(module, "bias", None) is not None
    fit, check = (_Moments.of(module, spec, dense[part], ours[part]) for part in (slice(cut), slice(cut, None)))
    (c, cross), (c_check, _) = (fit + check).normalised(centred), (check if check.count else fit).normalised(centred)
    share = best_shrinkage(spec, weight, fit.normalised(centred)[0], c_check)
    pull = DAMPING * c.diagonal(dim1=1, dim2=2).mean().clamp_min(1e-12) * torch.eye(c.shape[1], device=c.device)
    pull = pull + share * torch.diag_embed(c.diagonal(dim1=1, dim2=2))
    target = torch.linalg.solve((1 - share) * c + pull, (weight @ ((1 - share) * cross + pull)).mT).mT
    return FitProblem(spec, target, c, share).fit(plan)


@dataclass
class _Moments:
    """Sums over positions: x̂x̂ᵀ, xx̂ᵀ, x̂, x, and their number."""

    gram: Tensor
    cross: Tensor
    mean: Tensor
    dense_mean: Tensor
    count: int = 0

    @classmethod
    def of(cls, module: nn.Module, spec: LayerSpec, dense: Tensor, ours: Tensor) -> "_Moments":
        square = torch.zeros(2, spec.groups, spec.columns, spec.columns, device=ours.device)
        flat = torch.zeros(2, spec.groups, spec.columns, device=ours.device)
        m = cls(*square, *flat)
        size = max(1, ROWS_CHUNK // max(1, ours[:1].numel() * spec.kernel[0] * spec.kernel[1]))
        for a, b in zip(torch.split(dense, size), torch.split(ours, size), strict=True):
            if len(b):
                old, new = input_rows(module, a).float(), input_rows(module, b).float()
                gram(new, m.gram)
                m.cross.baddbmm_(old.mT, new)
                m.mean, m.dense_mean, m.count = m.mean + new.sum(1), m.dense_mean + old.sum(1), m.count + new.shape[1]
        return m

    def __add__(self, other: "_Moments") -> "_Moments":
        return _Moments(
            self.gram + other.gram, self.cross + other.cross, self.mean + other.mean,
            self.dense_mean + other.dense_mean, self.count + other.count,
        )

    def normalised(self, centred: bool) -> tuple[Tensor, Tensor]:
        """E[x̂x̂ᵀ] and E[xx̂ᵀ], or the covariances."""
        c, cross, mean, dense_mean = (t / max(1, self.count) for t in (self.gram, self.cross, self.mean, self.dense_mean))
        if centred:
            return c - mean[:, :, None] * mean[:, None], cross - dense_mean[:, :, None] * mean[:, None]
        return c, cross


def _mean_and_variance(x: Tensor) -> tuple[Tensor, Tensor]:
    """Of each channel of ``(n, channels, ...)``."""
    values = x.transpose(0, 1).flatten(1)
    return values.mean(1), values.var(1, correction=0)


def examples_that_fit(model: nn.Module, x: Tensor, cap: int = MEMORY_CAP) -> int:
    """How many examples like ``x`` (1, ...) a polish of ``model`` may take at once, in about ``cap`` bytes.

    Counts three times what the layer with the largest input and output holds.
    """
    largest = 1

    def measure(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal largest
        largest = max(largest, sum(t.numel() * t.element_size() for t in (*inputs, output) if isinstance(t, Tensor)))

    with _hooked({m: measure for m in model.modules() if not list(m.children())}), inference(model):
        model(x)
    return max(1, cap // (3 * largest))


@contextmanager
def _hooked(hooks: Mapping[nn.Module, Callable[..., Tensor | None]]) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
