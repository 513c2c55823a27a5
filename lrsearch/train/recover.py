"""Recovery: a full finetune of one compressed model, epoch by epoch, that can be killed at any time."""

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lrsearch.compress.fit import Decomposition
from lrsearch.spec.recover import RecoverConfig
from lrsearch.train.best import Best
from lrsearch.train.finetune import cosine
from lrsearch.train.gradual import Gradual
from lrsearch.train.input_scales import input_scales
from lrsearch.train.student import Student
from lrsearch.train.teacher import Teacher, seeded

SCALE_BATCHES = 8  # batches that the scales of the layers' inputs are measured on; once, so more than a short finetune takes


class Recovery:
    """Trains towards the dense model's stages and outputs, and the labels; whole epochs, each with a seed of its own.

    The learning rate follows a cosine with warm restarts (SGDR, Loshchilov & Hutter 2017), as in a finetune, so that a plan which lost
    little is not judged at large rates alone: of ResNet-32 at 47 % of its MACs an epoch at 0.003 trebled the held-out divergence, which
    300 steps down to 0 took to a third (``studies/results/targets_resnet20.txt``).
    Held-out examples judge it after each epoch. :meth:`run` hands over the best state, the one that it began with included. A cycle that
    does not end with it goes back to that state, with half of the learning rate; after ``patience`` such cycles in a row it ends.
    While S has more values than its plan, there is nothing to judge.

    Args:
        model: holds the dense layers, and the compressed model's other parameters; :meth:`run` writes into it.
        fits: the layers' factors; not changed.
        teacher: the dense model, the data and the loss; labels count where there are any and ``distillation`` is below 1.
        config: how long, and how.
        learning_rate: at the beginning of each cycle.

    Attributes:
        epochs: finished so far.
        steps: in each epoch; a last batch that is not full is left out.
        loss: training loss, the mean over the steps of the last epoch run; not a number before one is.
        best: the best state, and how far it is from the dense model.
        stale: cycles in a row that did not end with it.
        peak: learning rate at the beginning of a cycle.
    """

    def __init__(
        self, model: nn.Module, fits: Mapping[str, Decomposition], teacher: Teacher, config: RecoverConfig, learning_rate: float,
    ) -> None:
        self.teacher, self.config, self.peak, self.fit = teacher, config, learning_rate, teacher.fit
        self.batch = self.fit.draws(config.batch)
        self.epochs, self.steps, self.loss, self.stale = 0, self.fit.units // self.batch, math.nan, 0
        self.student = Student(model, fits, config.batchnorm == "free", config.clip, config.optimizer, config.autocast)
        self.best, self.gradual = Best(self.student, teacher, config.distillation), self._gradual(fits)
        self.best.judge()
        self.best.keep()
        self.student.begin(self.gradual.begin({name: teacher.dense.get_parameter(f"{name}.weight") for name in fits}))

    def _gradual(self, fits: Mapping[str, Decomposition]) -> Gradual:
        wanted = self.config.gradual
        if wanted is None:
            return Gradual(fits, 0.0, 0)
        scales = self._scales(fits) if wanted.importance == "scaled" else {}
        return Gradual(fits, wanted.start, int(wanted.until * self.config.epochs * self.steps), scales)

    def _scales(self, fits: Mapping[str, Decomposition]) -> dict[str, Tensor]:
        units = torch.split(torch.arange(self.fit.units), self.batch)[:SCALE_BATCHES]
        inputs = (self.fit.at(u, self.teacher.device).inputs for u in units)
        return input_scales(self.teacher.dense, [fit.layer for fit in fits.values()], inputs)

    def run(self, finished: Callable[[], None] = lambda: None) -> dict[str, Decomposition]:
        """Go on to the last epoch, or until ``patience`` ends, and write the best weights into the model.

        Args:
            finished: called after each epoch, when :meth:`state_dict` may be kept.

        Returns:
            The trained factors.

        Raises:
            ScoreError: the loss is not finite.
        """
        while self.epochs < self.config.epochs and self.stale < self.config.patience:
            with seeded((self.config.seed, self.epochs), self.teacher.device), self.student:
                self._epoch()
            self.epochs += 1
            self._judge()
            finished()
        return self.best.write()

    def _epoch(self) -> None:
        order = torch.randperm(self.fit.units)[: self.steps * self.batch].view(self.steps, self.batch)
        losses: list[Tensor] = []
        self.best.keep()
        with self.teacher.watching(self.student.model) as watched:
            for i, units in enumerate(order):
                step = self.epochs * self.steps + i
                if self.gradual.due(step):
                    self.student.sparsify(self.gradual.kept(step), self.gradual.scales)
                batch = self.teacher.batch(units, (self.config.seed, self.epochs, i))
                loss = self.teacher.loss(batch, watched, self.config.distillation)
                losses.append(self.student.step(batch.inputs, loss, self.learning_rate(step), f"epoch {self.epochs}, step {i}"))
        self.student.check()
        self.loss = float(torch.stack(losses).mean())

    def _judge(self) -> None:
        """After a cycle whose end is not the best state, go back to that, with half of the learning rate."""
        if self.gradual.ramp and self.epochs * self.steps <= self.gradual.ramp:
            return
        better = self.best.judge()
        if self.epochs not in self.config.ends:
            return
        self.stale = 0 if better else self.stale + 1
        if not better:
            self.best.restore()
            self.peak /= 2

    def learning_rate(self, step: int) -> float:
        """That of the step after ``step`` finished ones."""
        start, end = next((a * self.steps, b * self.steps) for a, b in pairwise((0, *self.config.ends)) if step < b * self.steps)
        warm = min(self.config.warmup * self.steps, (end - start) / 4)
        rise = min(1.0, (step - start + 1) / warm) if warm else 1.0
        return self.peak * rise * cosine((step - start) / (end - start))

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on, as tensors and numbers."""
        mine = {"epochs": self.epochs, "peak": self.peak, "stale": self.stale, "best": self.best.state_dict()}
        return {**mine, "lowered": self.teacher.lowered, **self.student.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken, of a recovery of the same model, plan, data and configuration."""
        self.epochs, self.peak, self.stale = state["epochs"], state["peak"], state["stale"]
        self.student.load_state_dict(state)
        self.best.load_state_dict(state["best"])
