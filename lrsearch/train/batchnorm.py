"""BatchNorm correction, kept only where held-out data say that it helps.

Compression shifts what a BatchNorm layer sees. The candidate and the dense model see the same few hundred examples. The running
statistics move by the difference between the two. Replacing them by the statistics of so few examples would do harm.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import InitVar, dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lrsearch.spec.score import NOISE
from lrsearch.task.base import Task
from lrsearch.task.data import Examples
from lrsearch.task.forward import Inputs, examples_in, forward, inference
from lrsearch.task.memory import BatchSize
from lrsearch.task.scoring import Reference
from lrsearch.task.softmax import Classification

Statistics = list[tuple[Tensor, Tensor]]
MOST = 10.0  # times by which a variance may grow or shrink


def norms(model: nn.Module) -> list[_BatchNorm]:
    """The BatchNorm layers of ``model`` that keep running statistics."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def statistics(model: nn.Module, batches: Iterable[Inputs]) -> Statistics:
    """Mean and variance of what each BatchNorm layer sees, averaged over ``batches``; the model is left as it was.

    A single example has no variance and is skipped.
    """
    layers = norms(model)
    if not layers:  # not a pass over the data for nothing
        return []
    before = [{k: v.clone() for k, v in m.named_buffers()} for m in layers]
    momenta = [m.momentum for m in layers]
    try:
        with inference(model):
            for m in layers:
                m.reset_running_stats()
                m.momentum = None
                m.train()
            for x in batches:
                if examples_in(x) > 1:
                    forward(model, x)
        return running(model)
    finally:
        for m, momentum, buffers in zip(layers, momenta, before, strict=True):
            m.momentum = momentum
            for key, value in buffers.items():
                m.get_buffer(key).copy_(value)


def running(model: nn.Module) -> Statistics:
    """The running mean and variance of each BatchNorm layer."""
    return [(m.get_buffer("running_mean").clone(), m.get_buffer("running_var").clone()) for m in norms(model)]


def shifted(own: tuple[Tensor, Tensor], dense: tuple[Tensor, Tensor], seen: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The new statistics of one layer, each a mean and a variance.

    The mean moves by the difference between ``seen`` and ``dense``. The variance is multiplied by their ratio, at most by ``MOST``.

    Args:
        own: the running statistics of the dense model.
        dense: what the dense model's layer saw in the examples.
        seen: what the candidate's layer saw in the same examples.
    """
    ratio = (seen[1] / dense[1].clamp_min(1e-12)).clamp(1 / MOST, MOST)
    return own[0] + seen[0] - dense[0], own[1] * ratio


@dataclass
class Correction:
    """Corrects the BatchNorm statistics of a candidate, if that helps.

    Args:
        dense: the dense model; not changed.
        fit: examples that the corrections are computed on.
        held_out: examples that decide.
        batch: examples at a time.
        task: says how far outputs are apart.
        device: where the models are.
        base: the state of ``dense``, if ``dense`` is going to be written over.
    """

    dense: InitVar[nn.Module]
    fit: Examples
    held_out: Examples
    batch: int | BatchSize
    task: Task = field(default_factory=Classification)
    device: torch.device | str = "cpu"
    base: Mapping[str, Tensor] | None = None

    def __post_init__(self, dense: nn.Module) -> None:
        self.sizes = self.batch if isinstance(self.batch, BatchSize) else BatchSize(self.batch)
        self.reference = Reference(self.task, dense, self.held_out, self.sizes, self.device)
        self._state, self._own = self.base or dict(dense.state_dict()), running(dense)
        self._size, self._dense = self._seen(dense)

    def _seen(self, model: nn.Module) -> tuple[int, Statistics]:
        """The size of the batches that fit into memory, and the statistics of ``model`` over them."""
        return self.sizes.run(lambda size: (size, statistics(model, (b.inputs for b in self.fit.batches(size, self.device)))))

    def _differing(self, model: nn.Module) -> Statistics:
        """The statistics of ``model``.

        The variance of a batch depends on its size. Where only smaller batches fit into memory, :attr:`_dense` is computed again for these.
        """
        size, seen = self._seen(model)
        while size != self._size:
            own = copy.deepcopy(model.state_dict())
            try:
                model.load_state_dict(self._state)
                self._size, self._dense = self._seen(model)
            finally:
                model.load_state_dict(own)
            size, seen = self._seen(model)
        return seen

    def without(self, seen: Examples) -> "Correction | None":
        """The same correction, where only held-out examples that are not among ``seen`` decide; None if there are none.

        A model looks better on what it was trained on than on other examples.
        """
        left = self.held_out.units_without(set(seen.digests()))
        if len(left) == self.held_out.units:
            return self
        if not left:
            return None
        fewer = copy.copy(self)
        fewer.reference = self.reference.part(left)
        fewer.held_out = fewer.reference.examples
        return fewer

    def divergence(self, model: nn.Module) -> float:
        """Mean divergence from the dense model on the held-out examples."""
        return float(self._divergences(model).mean())

    def _divergences(self, model: nn.Module) -> Tensor:
        return self.reference.compare(model, measured=False).divergences

    def apply_if_better(self, model: nn.Module, settled: bool | None = None) -> bool:
        """Correct ``model``; undo it unless :meth:`divergence` falls in the mean. Returns whether the correction stays.

        Args:
            settled: whether the same model was corrected before a finetune; None to decide anew. An earlier decision stays, unless
                the held-out examples contradict it by more than ``NOISE`` standard errors. After a finetune a correction gains less
                than a few hundred examples can tell.
        """
        if not norms(model):
            return False
        before, old = self._divergences(model), running(model)
        seen = self._differing(model)
        _write(model, [shifted(*three) for three in zip(self._own, self._dense, seen, strict=True)])
        gained = before - self._divergences(model)
        if float(gained.mean()) > needed(gained, settled):
            return True
        _write(model, old)
        return False


def needed(gained: Tensor, settled: bool | None) -> float:
    """How much a correction has to gain in the mean of ``gained`` (n,)."""
    if settled is None:
        return 0.0
    noise = NOISE * float(gained.std()) / len(gained) ** 0.5 if len(gained) > 1 else 0.0
    return -noise if settled else noise


def _write(model: nn.Module, values: Statistics) -> None:
    for m, (mean, var) in zip(norms(model), values, strict=True):
        m.get_buffer("running_mean").copy_(mean)
        m.get_buffer("running_var").copy_(var)
