"""A distillation finetune in effective-weight form that can pause and go on."""

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lrsearch.compress.fit import Decomposition
from lrsearch.spec.config import FinetuneConfig
from lrsearch.task.data import Batch, Examples
from lrsearch.task.scoring import Reference
from lrsearch.train.input_scales import input_scales
from lrsearch.train.student import Student

EXPLORED = 0.75  # share of a cosine cycle in which masks are chosen anew
SCALE_BATCHES = 2  # batches that the scales of the layers' inputs are measured on


def batch_order(train: Examples, config: FinetuneConfig) -> Tensor:
    """``(steps, batch)`` units of ``train``, see :class:`Examples`: whole epochs in an order fixed by the seed."""
    generator, n = torch.Generator().manual_seed(config.seed), train.units
    batch = train.draws(config.batch)
    need = config.steps * batch
    epochs = [torch.randperm(n, generator=generator) for _ in range(-(-need // n))]
    return torch.cat(epochs)[:need].view(config.steps, batch)


class Training:
    """Trains factors, kept values and everything else of a model towards the dense model's outputs.

    The learning rate follows a cosine with warm restarts (SGDR, Loshchilov & Hutter 2017): from its
    peak to 0 at each of the rungs' ends. The order of the batches does not depend on where it paused.
    With ``masks: reselect``, S takes up in the first three quarters of each cycle what has grown larger, its
    update included, than what it has (LoSparse, Li et al. 2023, weighed by the inputs' scale as in Wanda).

    Args:
        model: holds the dense layers; :meth:`run` writes into it, and it may be used for something else in between.
        fits: the layers' factors; not changed.
        reference: the dense model's outputs on the training data; knows both, and the task.
        config: how long, and how.

    Attributes:
        steps: finished so far.
    """

    def __init__(
        self, model: nn.Module, fits: Mapping[str, Decomposition], reference: Reference, config: FinetuneConfig,
    ) -> None:
        self.reference, self.train, self.config, self.device = reference, reference.examples, config, reference.device
        self.student = Student(model, fits, config.batchnorm == "free", config.clip)
        self.order = batch_order(self.train, config)
        self.steps, self._scales = 0, dict[str, Tensor]()
        self._kept = {name: int(fit.mask.sum()) for name, fit in fits.items()}

    def run(self, until: int) -> dict[str, Decomposition]:
        """Go on to ``until`` finished steps, at most the configured number, and write the weights into the model.

        Returns:
            The trained factors.

        Raises:
            ScoreError: the loss is not finite.
        """
        if self.config.masks == "reselect" and not self.steps:
            self._scales = self._measured()
        with self.student as student:
            for step in range(self.steps, min(until, self.config.steps)):
                self._select(step)
                units = self.order[step]
                batch = self.train.at(units, self.device)
                student.step(batch.inputs, self._loss(batch, units), self.learning_rate(step), f"finetune step {step}")
                self.steps = step + 1
        return self.student.write()

    def _loss(self, batch: Batch, units: Tensor) -> Callable[[Any], Tensor]:
        task, wanted = self.reference.task, self.reference.at(units, batch)
        return lambda raw: task.loss(task.outputs(task.picked(raw), batch.inputs), wanted, self.config.temperature)

    def _measured(self) -> dict[str, Tensor]:
        """The scales of the layers' inputs in the first batches."""
        specs = [fit.layer for fit in self.student.write().values()]
        batches = (self.train.at(units, self.device).inputs for units in self.order[:SCALE_BATCHES])
        return input_scales(self.student.model, specs, batches)

    def _select(self, step: int) -> None:
        """Choose the masks anew, if it is time."""
        start, end = self._cycle(step)
        exploring = self.config.masks == "reselect" and step - start < EXPLORED * (end - start)
        due = exploring and step > start and (step - start) % self.config.reselect_every == 0
        if due or (self.student.exploring and not exploring):
            self.student.sparsify(self._kept, self._scales)
        self.student.exploring = exploring

    def learning_rate(self, step: int) -> float:
        """That of the step after ``step`` finished ones."""
        start, end = self._cycle(step)
        return self.config.learning_rate * cosine((step - start) / (end - start))

    def _cycle(self, step: int) -> tuple[int, int]:
        return next(cycle for cycle in pairwise((0, *self.config.ends)) if step < cycle[1])

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on, as tensors and numbers."""
        return {"steps": self.steps, "scales": dict(self._scales), **self.student.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken, of a training of the same model, plan, data and configuration."""
        self.steps, self._scales = state["steps"], {n: s.to(self.device) for n, s in state["scales"].items()}
        self.student.load_state_dict(state)


def cosine(share: float) -> float:
    """From 1 at ``share`` 0 to 0 at 1."""
    return 0.5 * (1 + math.cos(math.pi * share))
