"""Student: a compressed model in effective-weight form, trained step by step, that can be put away and taken up again."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lrsearch.compress.apply import write_effective
from lrsearch.compress.fit import Decomposition
from lrsearch.compress.formats.base import balanced
from lrsearch.compress.matricize import to_weight
from lrsearch.compress.sparsify import pack_bits, select, unpack_bits
from lrsearch.errors import ScoreError
from lrsearch.spec.pattern import pattern
from lrsearch.spec.training import Autocast, Optimizer
from lrsearch.task.forward import Inputs, autocast, device_of, forward_with
from lrsearch.train.batchnorm import norms

MOMENTUM = 0.9  # of SGD, Nesterov's
STEP = "step"  # of Adam's state: how many there were, which torch keeps on the CPU
READ_AT_ONCE = 16  # losses: each reading waits for the device
SMALLEST = 1e-3  # size that a parameter of zeros is taken to have (Adafactor's ε2)
_SCALE = "scale"  # of a parameter group: what its learning rate is in units of
_FACTOR, _SPARSE = "{}/factor{}", "{}/sparse"


class Student:
    """Factors, kept values and everything else of a model, trained by Adam, or by SGD with Nesterov momentum.

    The factors of a layer begin with equal norms. Adam's learning rate is in units of each parameter's size when training begins (relative
    steps: Adafactor, Shazeer & Stern 2018, section 8), as the terms of a low-rank part may cancel and then bear small changes alone.

    Each step computes W = L + S from the factors and runs the dense layer with it: one small
    matrix product instead of three layers. All that is trained is the student's own; the model
    lends its layers and gets the weights when :meth:`write` is called, so that it may be used for
    something else in between. What a model has in 16 bits is trained in float32, as steps are smaller than their
    rounding (Micikevicius et al. 2018), and lent to it in its own type.

    Args:
        model: holds the dense layers, and the other parameters to start from.
        fits: the layers' factors; not changed.
        free: whether BatchNorm normalises by the batch and moves its statistics.
        clip: largest gradient norm.
        optimizer: ``adam`` or ``sgd``.
        dtype: that a step's forward pass is run in by autocast; ``none`` for the model's own.

    Attributes:
        masks: layer name → the kept positions of S; fixed until :meth:`sparsify` is called.
        exploring: whether the updates of what S leaves out are gathered there, for :meth:`sparsify` to choose by
            (straight-through); they do not count in the weights.
    """

    def __init__(
        self, model: nn.Module, fits: Mapping[str, Decomposition], free: bool, clip: float, optimizer: Optimizer = "adam",
        dtype: Autocast = "none",
    ) -> None:
        self.model, self.free, self.clip, self.dtype, self.exploring = model, free, clip, dtype, False
        self.masks = {name: fit.mask.clone() for name, fit in fits.items()}
        others = {n: p for n, p in model.named_parameters() if n.removesuffix(".weight") not in fits}
        self.parameters = {n: _trainable(p).requires_grad_(p.requires_grad) for n, p in others.items()}
        self.fits = {name: self._leaves(name, fit) for name, fit in fits.items()}
        statistics = {m: name for name, m in model.named_modules()}
        self.buffers = {f"{statistics[m]}.{key}".lstrip("."): b.clone() for m in norms(model) for key, b in m.named_buffers()}
        self._others, self._losses = tuple(others), list[tuple[str, Tensor]]()
        self.trained = {n: p for n, p in self.parameters.items() if p.requires_grad}
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.Adam([{"params": [p], _SCALE: self._size(n)} for n, p in self.trained.items()]) if optimizer == "adam"
            else torch.optim.SGD([{"params": [*self.trained.values()], _SCALE: 1.0}], momentum=MOMENTUM, nesterov=True)
        )

    def _leaves(self, name: str, fit: Decomposition) -> Decomposition:
        """``fit`` with trainable copies of its factors and of S, which become parameters."""
        factors = tuple(f.detach().clone().requires_grad_() for f in (balanced(fit.factors) if fit.factors else ()))
        self.parameters |= {_FACTOR.format(name, i): f for i, f in enumerate(factors)}
        sparse = self.parameters[_SPARSE.format(name)] = fit.sparse.detach().clone().requires_grad_()
        return replace(fit, factors=factors, sparse=sparse, mask=self.masks[name])

    def _size(self, name: str) -> float:
        """Root mean square of what a parameter has now, of S where it is kept; at least ``SMALLEST``."""
        values, mask = self.parameters[name].detach(), self._mask(name)
        kept = values.numel() if mask is None else max(1, int(mask.sum()))
        return max(SMALLEST, math.sqrt(float(values.float().square().sum()) / kept))

    def step(self, inputs: Inputs, loss: Callable[[Any], Tensor], learning_rate: float, place: str) -> Tensor:
        """One step on a batch; ``loss`` takes what the model returns.

        Returns:
            The loss before the step, on the device.

        Raises:
            ScoreError: the loss of this step, or of one shortly before, is not finite; see :meth:`check`.
        """
        lent = self._lent()
        with autocast(device_of(self.model), self.dtype):
            raw = forward_with(self.model, lent, inputs)
        found = loss(raw)
        self._losses.append((place, found.detach()))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group[_SCALE]
        self.optimizer.zero_grad()
        found.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.trained.values(), self.clip)
        self.optimizer.step()
        if len(self._losses) == READ_AT_ONCE:
            self.check()
        return found.detach()

    def check(self) -> None:
        """See that the losses of all steps so far are finite; they are read a few at a time, as an accelerator waits for who reads.

        Raises:
            ScoreError: one is not.
        """
        for place, value in zip([place for place, _ in self._losses], _read([loss for _, loss in self._losses]), strict=True):
            if not math.isfinite(value):
                raise ScoreError("the finetune loss must be finite", value=value, place=place, remedy="Lower the learning_rate.")
        self._losses.clear()

    @torch.no_grad()
    def begin(self, fits: Mapping[str, Decomposition]) -> None:
        """Take S and its mask from ``fits``."""
        for name, fit in fits.items():
            self.masks[name].copy_(fit.mask)
            self.fits[name].sparse.copy_(fit.sparse)

    @torch.no_grad()
    def sparsify(self, kept: Mapping[str, int], scales: Mapping[str, Tensor]) -> None:
        """Choose the support of each S anew: the largest by |S| times the input scale. What is left out becomes zero.

        Args:
            kept: layer name → number of values; of the layers whose support is to change.
            scales: layer name → ``(groups, 1, columns)``; 1 for what is not there.
        """
        for name, count in kept.items():
            fit = self.fits[name]
            weighed = fit.sparse * scales[name] if name in scales else fit.sparse
            mask = self.masks[name].copy_(select(weighed, fit.layer, pattern(fit.plan.pattern), count))
            fit.sparse.mul_(mask)
            for moment in self._moments(fit.sparse).values():
                moment.mul_(mask)

    def _moments(self, parameter: Tensor) -> dict[str, Tensor]:
        """What the optimizer keeps of each value of ``parameter``."""
        return {key: value for key, value in self.optimizer.state[parameter].items() if key != STEP}

    def _lent(self) -> dict[str, Tensor]:
        """What the model computes with, by its own names."""
        whole = {n: replace(fit, sparse=self._masked(n, fit.sparse)).effective() for n, fit in self.fits.items()}
        weights = {f"{n}.weight": self._as_weight(n, w) for n, w in whole.items()}
        others = {n: self.parameters[n].to(self.model.get_parameter(n).dtype) for n in self._others}
        return {**weights, **others, **self.buffers}

    def _as_weight(self, name: str, matrix: Tensor) -> Tensor:
        """``matrix`` in the shape and type of the weight of the layer ``name``."""
        return to_weight(matrix, self.fits[name].layer).to(self.model.get_parameter(f"{name}.weight").dtype)

    def _masked(self, name: str, sparse: Tensor) -> Tensor:
        """S; no gradient reaches what it leaves out, unless exploring."""
        masked = sparse * self.masks[name]
        return sparse + (masked - sparse).detach() if self.exploring else masked

    def __enter__(self) -> "Student":
        """Put the model into the mode to train in."""
        self.model.eval()
        for m in norms(self.model) if self.free else ():
            m.train()
        return self

    def __exit__(self, *_: object) -> None:
        self.model.eval()

    @torch.no_grad()
    def write(self) -> dict[str, Decomposition]:
        """Write effective weights, other parameters and statistics into the model; returns copies of the trained factors.

        Raises:
            ScoreError: a loss was not finite.
        """
        self.check()
        fits = {
            n: replace(f, factors=tuple(t.detach().clone() for t in f.factors), sparse=f.sparse * self.masks[n], mask=self.masks[n].clone())
            for n, f in self.fits.items()
        }
        write_effective(self.model, fits)
        for name in self._others:
            self.model.get_parameter(name).copy_(self.parameters[name])
        for name, buffer in self.buffers.items():
            self.model.get_buffer(name).copy_(buffer)
        return fits

    def values(self) -> dict[str, Any]:
        """Copies of what a model computes with; of S, the kept values where there are no others."""
        return {
            "masks": {n: pack_bits(mask) for n, mask in self.masks.items()},
            "parameters": {n: self._packed(n, p.detach()) for n, p in self.parameters.items()},
            "buffers": {n: b.clone() for n, b in self.buffers.items()},
        }

    @torch.no_grad()
    def load_values(self, state: Mapping[str, Any]) -> None:
        """Go back to where :meth:`values` was called."""
        for name, mask in self.masks.items():
            mask.copy_(unpack_bits(state["masks"][name].to(mask.device), mask.numel()).view_as(mask))
        for name, p in self.parameters.items():
            p.copy_(self._unpacked(name, state["parameters"][name], p))
        for name, buffer in self.buffers.items():
            buffer.copy_(state["buffers"][name])

    def forget(self) -> None:
        """Begin anew with the optimizer's moments, which belong to other values than the present ones."""
        self.optimizer.state.clear()

    def state_dict(self) -> dict[str, Any]:
        """Copies of all that training changes."""
        moments = {
            n: {key: m.clone() if key == STEP else self._packed(n, m) for key, m in self.optimizer.state[p].items()}
            for n, p in self.trained.items()
        }
        sizes = [group[_SCALE] for group in self.optimizer.param_groups]
        return {"exploring": self.exploring, "moments": moments, "sizes": sizes, **self.values()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to where :meth:`state_dict` was called, on a student of the same model and plan, whatever its values are."""
        self.exploring = state["exploring"]
        for group, size in zip(self.optimizer.param_groups, state["sizes"], strict=True):
            group[_SCALE] = size
        self.load_values(state)
        self.forget()
        for name, p in self.trained.items():
            for key, m in state["moments"][name].items():
                self.optimizer.state[p][key] = m.clone() if key == STEP else self._unpacked(name, m, p).clone()

    def _packed(self, name: str, values: Tensor) -> Tensor:
        mask = self._mask(name)
        whole = mask is None or bool(values[~mask].any())
        return values.clone() if mask is None or whole else values[mask]

    def _unpacked(self, name: str, values: Tensor, like: Tensor) -> Tensor:
        mask, values = self._mask(name), values.to(like.device)
        return values if mask is None or values.shape == like.shape else torch.zeros_like(like).masked_scatter(mask, values)

    def _mask(self, name: str) -> Tensor | None:
        """The mask of the parameter ``name``, if it is an S."""
        layer, _, kind = name.rpartition("/")
        return self.masks[layer] if kind == "sparse" and layer in self.masks else None


def _read(losses: list[Tensor]) -> list[float]:
    """All of ``losses``, in one transfer."""
    return torch.stack(losses).cpu().tolist() if losses else []


def _trainable(values: Tensor) -> Tensor:
    """A copy, of floats in float32 at least."""
    wide = torch.promote_types(values.dtype, torch.float32) if values.is_floating_point() else values.dtype
    return values.detach().to(wide, copy=True)
