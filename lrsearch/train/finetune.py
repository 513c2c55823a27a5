"""A distillation finetune in effective-weight form that can pause and go on, and never ends worse than it began."""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lrsearch.compress.fit import Decomposition
from lrsearch.spec.config import FinetuneConfig
from lrsearch.task.data import Examples
from lrsearch.train.best import Best
from lrsearch.train.input_scales import input_scales
from lrsearch.train.student import Student
from lrsearch.train.teacher import Teacher

EXPLORED = 0.75  # share of a cosine cycle in which masks are chosen anew
SCALE_BATCHES = 2  # batches that the scales of the layers' inputs are measured on
WARMUP = 15  # steps, and at most a quarter of a cosine cycle: Adam's first steps go by the signs of gradients alone
JUDGED_EVERY = 50  # steps; a judgement takes as long as one or two


def batch_order(train: Examples, config: FinetuneConfig) -> Tensor:
    """``(steps, batch)`` units of ``train``, see :class:`Examples`: whole epochs in an order fixed by the seed."""
    generator, n = torch.Generator().manual_seed(config.seed), train.units
    batch = train.draws(config.batch)
    need = config.steps * batch
    epochs = [torch.randperm(n, generator=generator) for _ in range(-(-need // n))]
    return torch.cat(epochs)[:need].view(config.steps, batch)


class Training:
    """Trains factors, kept values and everything else of a model towards the dense model's stages and outputs.

    The learning rate follows a cosine with warm restarts (SGDR, Loshchilov & Hutter 2017): from its
    peak, after a linear warm-up, to 0 at each of the rungs' ends. The order of the batches does not depend on where it paused.
    Held-out examples judge it at each of these ends and every 50 steps. The best state, the one that it began with included, is what
    :meth:`run` hands over, and what the next rung begins with; if that is not the last, the learning rate is halved.
    A plan that changes no layer has nothing to learn, and is left as it is.
    With ``masks: reselect``, S takes up in the first three quarters of each cycle what has grown larger, its
    update included, than what it has (LoSparse, Li et al. 2023, weighed by the inputs' scale as in Wanda).

    Args:
        model: holds the dense layers; :meth:`run` writes into it, and it may be used for something else in between.
        fits: the layers' factors; not changed.
        teacher: the dense model, the data and the loss.
        config: how long, and how.
        learning_rate: at the beginning of each cycle.

    Attributes:
        steps: finished so far.
        best: the best state, and how far it is from the dense model.
        learns: whether there is anything to learn; true of a plan that changes a layer.
    """

    def __init__(
        self, model: nn.Module, fits: Mapping[str, Decomposition], teacher: Teacher, config: FinetuneConfig, learning_rate: float,
    ) -> None:
        self.teacher, self.config, self.peak = teacher, config, learning_rate
        self.student = Student(model, fits, config.batchnorm == "free", config.clip, config.optimizer, config.autocast)
        self.best = Best(self.student, teacher)
        self.order = batch_order(teacher.fit, config)
        self.steps, self._scales = 0, dict[str, Tensor]()
        self._kept = {name: int(fit.mask.sum()) for name, fit in fits.items()}
        self.learns = bool(fits)

    def run(self, until: int) -> dict[str, Decomposition]:
        """Go on to ``until`` finished steps, at most the configured number, and write the best weights so far into the model.

        Returns:
            The trained factors.

        Raises:
            ScoreError: the loss is not finite.
        """
        until = min(until, self.config.steps)
        if not self.learns:
            self.steps = until
        elif not self.steps:
            self.best.judge()
            self._scales = self._measured() if self.config.masks == "reselect" else {}
        while self.steps < until:
            end = self._cycle(self.steps)[1]
            stop = min(end, self.steps - self.steps % JUDGED_EVERY + JUDGED_EVERY)
            self._train(min(stop, until))
            if self.steps == stop and not self.best.judge() and stop == end:
                self.best.restore()
                self.peak /= 2
        return self.best.write()

    def _train(self, until: int) -> None:
        self.best.keep()
        with self.student as student, self.teacher.watching(student.model) as watched:
            for step in range(self.steps, until):
                self._select(step)
                batch = self.teacher.batch(self.order[step], (self.config.seed, step))
                student.step(batch.inputs, self.teacher.loss(batch, watched), self.learning_rate(step), f"finetune step {step}")
                self.steps = step + 1

    def _measured(self) -> dict[str, Tensor]:
        """The scales of the layers' inputs in the first batches."""
        specs = [fit.layer for fit in self.student.write().values()]
        batches = (self.teacher.fit.at(units, self.teacher.device).inputs for units in self.order[:SCALE_BATCHES])
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
        rise = min(1.0, (step - start + 1) / min(WARMUP, (end - start) / 4))
        return self.peak * rise * cosine((step - start) / (end - start))

    def _cycle(self, step: int) -> tuple[int, int]:
        return next(cycle for cycle in pairwise((0, *self.config.ends)) if step < cycle[1])

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on, as tensors and numbers."""
        mine = {"steps": self.steps, "scales": dict(self._scales), "peak": self.peak, "best": self.best.state_dict()}
        return {**mine, **self.student.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken, of a training of the same model, plan, data and configuration."""
        self.steps, self.peak = state["steps"], state["peak"]
        self._scales = {n: s.to(self.teacher.device) for n, s in state["scales"].items()}
        self.student.load_state_dict(state)
        self.best.load_state_dict(state["best"])


def cosine(share: float) -> float:
    """From 1 at ``share`` 0 to 0 at 1."""
    return 0.5 * (1 + math.cos(math.pi * share))
