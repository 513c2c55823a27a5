"""Polish: a chosen plan's layers fitted once more, each against the inputs it will really see.

One forward pass does it. Each batch holds its examples twice: the first half goes through the
dense layers, the second through the compressed ones. A layer is fitted when the inputs of all
batches have arrived, all layers before it being final by then.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.hooks import RemovableHandle

from lrsearch.compress.fit import UNSHRUNK, Decomposition, FitProblem
from lrsearch.compress.matricize import to_matrix, to_weight
from lrsearch.compress.shrinkage import best_shrinkage
from lrsearch.errors import ModelError
from lrsearch.profile.importance import importances
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.memory import memory_share
from lrsearch.spec.plan import LayerPlan, Plan
from lrsearch.task.base import Task
from lrsearch.task.data import Examples
from lrsearch.task.forward import Inputs, examples_in, first_tensor, forward, inference, joined, moved, named_tensors, rows
from lrsearch.train.batchnorm import norms, shifted
from lrsearch.train.layer_by_layer import LayerByLayer, PartedError
from lrsearch.train.moments import JointMoments, channel_sums, mean_and_variance, near_mean

ACTIVATIONS_CAP = memory_share(1, 2)  # bytes of activations held at once
LEAST_BATCHES = 8  # that the examples make, so that some can be held out
CHECK_SHARE = 0.25  # of the batches: they tell how far to shrink the Gram matrix


@dataclass
class Polished:
    """What a polish found.

    Attributes:
        fits: of every layer of the plan.
        tensors: new biases and BatchNorm statistics, by their names in the state dict.
    """

    fits: dict[str, Decomposition] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)


def polish(
    dense: nn.Module, layers: Iterable[LayerSpec], plan: Plan, batches: Sequence[Inputs], task: Task | None = None,
    known: dict[str, Tensor] | None = None,
) -> Polished:
    """Fit the layers of ``plan`` in forward order, and correct biases and BatchNorm statistics.

    A layer is fitted to what the dense network computes there, min E‖W x − (L + S) x̂‖², x̂ being
    its input in the compressed network. A bias takes up the mean of what is left; BatchNorm
    statistics move by as much as the compressed network's differ from the dense one's.

    Args:
        dense: the dense model in eval mode, left as it was.
        layers: specs of at least the layers in ``plan``.
        plan: what each layer becomes.
        batches: calibration inputs, in all as many as :func:`examples_that_fit` allows; what lies
            between two layers is held of all of them.
        task: of the model; classification if None.
        known: :func:`~lrsearch.profile.importance.importances` of layers, which polishes of other plans found; new ones are added.

    Raises:
        ModelError: a layer's input does not keep the examples of a batch apart, or its weight is tied, or too wide; or other examples
            go through other layers.
    """
    layers = list(layers)
    for spec in layers:
        if spec.name in plan.layers and (spec.tied or spec.blocks > 1):
            raise ModelError(
                "a polish fits layers one after another, each with its whole Gram matrix", place=spec.name,
                value="a tied weight" if spec.tied else f"{spec.columns} columns", remedy="Use the plan without polish.",
            )
    twin = _Twin(dense, {spec.name: spec for spec in layers if spec.name in plan.layers}, plan, len(batches))
    twin.refuse_mixing(rows(batches[0], slice(0, 2)))
    twin.importance = known = {} if known is None else known
    known |= importances(dense, [spec for spec in twin.specs.values() if spec.name not in known], batches, task)
    with _hooked({**dict.fromkeys(twin.layers, twin.fit_layer), **dict.fromkeys(norms(twin.model), twin.shift_norm)}):
        try:
            twin.threads.run([partial(twin.run, x) for x in batches])
        except PartedError as error:
            raise ModelError(
                "a polish needs all examples to go through the same layers, in the same order", value="other layers for other examples",
                place="the model", remedy="Use the plan without polish.",
            ) from error
    return twin.found


class _Twin:
    """A copy of the dense model whose second half of every batch is the compressed network."""

    def __init__(self, dense: nn.Module, specs: Mapping[str, LayerSpec], plan: Plan, batches: int) -> None:
        self.dense, self.model, self.specs, self.plan, self.threads = dense, copy.deepcopy(dense).eval(), specs, plan, LayerByLayer()
        self.names = {m: n for n, m in self.model.named_modules()}
        self.layers = [self.model.get_submodule(name) for name in plan.layers]
        self.found, self._settled = Polished(), dict[nn.Module, dict[str, Tensor]]()
        self.importance: Mapping[str, Tensor] = {}
        self._fitted = batches - int(CHECK_SHARE * batches)
        self._joint: tuple[JointMoments, JointMoments] | None = None
        self._sums: Tensor | None = None

    def run(self, x: Inputs) -> None:
        forward(self.model, joined([x, x]))

    def fit_layer(self, module: nn.Module, x: Tensor, output: Tensor) -> Tensor:
        """Forward hook of a layer: fit it when all batches are here, then compute the second half with the fit."""
        if module not in self._settled:
            self.threads.meet(module, partial(self._add, module, x), partial(self._settle_layer, module))
        return self._replaced(module, x, output)

    def _add(self, module: nn.Module, x: Tensor) -> None:
        if self._joint is None:
            near = near_mean(module, x) if getattr(module, "bias", None) is not None else None  # a bias makes up for any mean
            spec = self.specs[self.names[module]]
            self._joint = JointMoments.zero(spec, x.device, near), JointMoments.zero(spec, x.device, near)
        self._joint[self.threads.index >= self._fitted].add(module, *x.chunk(2))

    def _settle_layer(self, module: nn.Module) -> None:
        assert self._joint is not None
        fit, check = self._joint
        name, weight, bias = self.names[module], module.get_parameter("weight"), getattr(module, "bias", None)
        matrix = to_matrix(weight.detach().float(), self.specs[name])
        found = _fit(self.specs[name], matrix, self.plan[name], fit, check, self.importance[name])
        tensors = {"weight": to_weight(found.effective(), found.layer).to(weight.dtype)}
        if isinstance(bias, Tensor):
            missing = (fit + check).missing(matrix, found.effective())
            tensors["bias"] = self.found.tensors[f"{name}.bias"] = bias + missing.to(bias.dtype)
        self.found.fits[name], self._settled[module], self._joint = found, tensors, None

    def shift_norm(self, module: nn.Module, x: Tensor, output: Tensor) -> Tensor:
        """Forward hook of a BatchNorm: shift its statistics, then compute the second half with them."""
        if module not in self._settled:
            self.threads.meet(module, partial(self._sum, x), partial(self._settle_norm, module))
        return self._replaced(module, x, output)

    def _sum(self, x: Tensor) -> None:
        sums = torch.stack([channel_sums(half) for half in x.chunk(2)])
        self._sums = sums if self._sums is None else self._sums + sums

    def _settle_norm(self, module: nn.Module) -> None:
        assert self._sums is not None
        dense, seen = (mean_and_variance(sums) for sums in self._sums)
        mean, variance = shifted((module.get_buffer("running_mean"), module.get_buffer("running_var")), dense, seen)
        tensors = {"running_mean": mean, "running_var": variance}
        tensors = {key: value.to(module.get_buffer(key).dtype) for key, value in tensors.items()}
        self.found.tensors |= {f"{self.names[module]}.{key}": value for key, value in tensors.items()}
        self._settled[module], self._sums = tensors, None

    def _computed(self, module: nn.Module, tensors: dict[str, Tensor], x: Tensor) -> Tensor:
        result: Tensor = torch.func.functional_call(self.dense.get_submodule(self.names[module]), tensors, (x,))
        return result

    def _replaced(self, module: nn.Module, x: Tensor, output: Tensor) -> Tensor:
        return torch.cat([output.chunk(2)[0], self._computed(module, self._settled[module], x.chunk(2)[1])])

    def refuse_mixing(self, x: Inputs) -> None:
        """Check on one or two examples that every layer sees what it sees of the first alone, and sees it in both halves.

        Raises:
            ModelError: one does not.
        """
        alone: dict[tuple[nn.Module, int], Tensor] = {}
        calls: Counter[nn.Module] = Counter()

        def compare(examples: int, module: nn.Module, x: Tensor, _: Tensor) -> None:
            calls[module] += 1
            parts = x.chunk(2 * examples)
            known = [parts[0], *parts[examples : examples + 1], alone.setdefault((module, calls[module]), parts[0])]
            if len(parts) != 2 * examples or not all(p.shape == parts[0].shape and _near(p, parts[0]) for p in known):
                raise ModelError(
                    "a polish needs the examples of a batch apart, along the first axis of every layer's input",
                    value=tuple(x.shape), place=self.names[module], remedy="Use the plan without polish.",
                )

        first = rows(x, slice(0, 1))
        other = rows(x, slice(1, 2)) if examples_in(x) > 1 else tree_map_only(Tensor, lambda t: t.roll(1, -1), x)
        for batch in (first, joined([first, other])):
            calls.clear()
            hook = partial(compare, examples_in(batch))
            with _hooked(dict.fromkeys([*self.layers, *norms(self.model)], hook)), inference(self.model):
                self.run(batch)


def _near(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()) if b.numel() else 0.0)


def _fit(
    spec: LayerSpec, weight: Tensor, plan: LayerPlan, fit: JointMoments, check: JointMoments, importance: Tensor,
) -> Decomposition:
    """The fit of W E[xx̂ᵀ] E[x̂x̂ᵀ]⁻¹, the best weight for the inputs x̂; damping pulls it to W.

    Args:
        spec: the layer's spec.
        weight: W, ``(groups, rows, columns)``.
        plan: what it becomes.
        fit: moments of its inputs.
        check: of others, which tell how far to shrink.
        importance: of its outputs, see :class:`FitProblem`.
    """
    c, cross = (fit + check).normalised()
    shrinkage = best_shrinkage(spec, weight, fit.normalised()[0], check.normalised()[0]) if check.count else UNSHRUNK
    share = shrinkage.whole
    pull = shrinkage.damping * c.diagonal(dim1=1, dim2=2).mean().clamp_min(1e-12) * torch.eye(c.shape[1], device=c.device)
    pull = pull + share * torch.diag_embed(c.diagonal(dim1=1, dim2=2))
    target = torch.linalg.solve((1 - share) * c + pull, (weight @ ((1 - share) * cross + pull)).mT).mT
    return FitProblem(spec, target, c, shrinkage, importance).fit(plan)


def polish_batches(
    dense: nn.Module, examples: Examples, most: int, device: torch.device | str = "cpu", cap: int = ACTIVATIONS_CAP,
) -> list[Inputs]:
    """The inputs of the first of ``examples``, as many as :func:`examples_that_fit` into ``cap`` bytes, at most ``most`` at a time."""
    held = -(-len(examples) // examples.units)  # examples in a unit: one, but where shapes vary and the user batched them
    count = min(examples.units, max(1, examples_that_fit(dense, moved(examples.sample(1), device), cap) // held))
    size = max(1, min(most, -(-count // LEAST_BATCHES)))
    return [batch.inputs for batch in examples.part(range(count)).batches(size, device)]


def examples_that_fit(model: nn.Module, x: Inputs, cap: int = ACTIVATIONS_CAP) -> int:
    """How many examples like the single one in ``x`` a polish of ``model`` may take, in about ``cap`` bytes.

    Counts three times the largest input of a layer: two halves, and as much again for what skips past.
    """
    largest = 1

    def measure(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], __: Any) -> None:
        nonlocal largest
        largest = max(largest, sum(t.numel() * t.element_size() for t in named_tensors((*args, *kwargs.values())).values()))

    with _handles(m.register_forward_hook(measure, with_kwargs=True) for m in model.modules() if not list(m.children())), inference(model):
        forward(model, x)
    return max(1, cap // (3 * largest))


def _hooked(hooks: Mapping[nn.Module, Callable[[nn.Module, Tensor, Tensor], Tensor | None]]) -> AbstractContextManager[None]:
    """Modules with forward hooks of what they read, the first tensor of their arguments, and return."""
    def with_input(hook: Callable[[nn.Module, Tensor, Tensor], Tensor | None]) -> Callable[..., Tensor | None]:
        def called(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> Tensor | None:
            x = first_tensor(args, kwargs)
            assert x is not None, "layers and norms read a tensor"
            return hook(module, x, output)

        return called

    return _handles(module.register_forward_hook(with_input(hook), with_kwargs=True) for module, hook in hooks.items())


@contextmanager
def _handles(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    handles = list(handles)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
