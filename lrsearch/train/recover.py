"""Recovery: a full finetune of one compressed model, epoch by epoch, that can be killed at any time."""

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lrsearch.compress.fit import Decomposition
from lrsearch.spec.recover import RecoverConfig
from lrsearch.task.augment import load_augment
from lrsearch.task.base import Task
from lrsearch.task.data import Examples
from lrsearch.task.forward import Inputs
from lrsearch.train.finetune import cosine
from lrsearch.train.gradual import Gradual
from lrsearch.train.input_scales import input_scales
from lrsearch.train.student import Student

SCALE_BATCHES = 8  # batches that the scales of the layers' inputs are measured on; once, so more than a short finetune takes


class Recovery:
    """Trains towards the dense model's outputs and the labels; whole epochs, each with a seed of its own.

    Args:
        model: holds the dense layers, and the compressed model's other parameters; :meth:`run` writes into it.
        fits: the layers' factors; not changed.
        dense: the teacher, in eval mode; not changed.
        train: inputs; labels count where there are any and ``distillation`` is below 1.
        config: how long, and how.
        task: says how far outputs are apart.
        device: where the models are.

    Attributes:
        epochs: finished so far.
        steps: in each epoch; a last batch that is not full is left out.
        loss: training loss, the mean over the steps of the last epoch run; not a number before one is.
    """

    def __init__(
        self, model: nn.Module, fits: Mapping[str, Decomposition], dense: nn.Module, train: Examples,
        config: RecoverConfig, task: Task, device: torch.device | str = "cpu",
    ) -> None:
        self.dense, self.train, self.config, self.device = copy.deepcopy(dense).to(device).eval(), train, config, device
        self.task = task
        self.augment = load_augment(config.augment)
        self.batch = train.draws(config.batch)
        self.epochs, self.steps, self.loss = 0, train.units // self.batch, math.nan
        self.gradual = self._gradual(fits)
        weights = {name: self.dense.get_parameter(f"{name}.weight") for name in fits}
        self.student = Student(model, self.gradual.begin(weights), config.batchnorm == "free", config.clip)

    def _gradual(self, fits: Mapping[str, Decomposition]) -> Gradual:
        wanted = self.config.gradual
        if wanted is None:
            return Gradual(fits, 0.0, 0)
        scales = self._scales(fits) if wanted.importance == "scaled" else {}
        return Gradual(fits, wanted.start, int(wanted.until * self.config.epochs * self.steps), scales)

    def _scales(self, fits: Mapping[str, Decomposition]) -> dict[str, Tensor]:
        units = torch.split(torch.arange(self.train.units), self.batch)[:SCALE_BATCHES]
        return input_scales(self.dense, [fit.layer for fit in fits.values()], (self.train.at(u, self.device).inputs for u in units))

    def run(self, finished: Callable[[], None] = lambda: None) -> dict[str, Decomposition]:
        """Go on to the last epoch and write the weights into the model.

        Args:
            finished: called after each epoch, when :meth:`state_dict` may be kept.

        Returns:
            The trained factors.

        Raises:
            ScoreError: the loss is not finite.
        """
        while self.epochs < self.config.epochs:
            with torch.random.fork_rng(devices=[self.device] if torch.device(self.device).type == "cuda" else []), self.student:
                torch.manual_seed(int(np.random.SeedSequence([self.config.seed, self.epochs]).generate_state(1)[0]))
                self._epoch()
            self.epochs += 1
            finished()
        return self.student.write()

    def _epoch(self) -> None:
        order = torch.randperm(self.train.units)[: self.steps * self.batch].view(self.steps, self.batch)
        losses: list[Tensor] = []
        for i, units in enumerate(order):
            step = self.epochs * self.steps + i
            if self.gradual.due(step):
                self.student.sparsify(self.gradual.kept(step), self.gradual.scales)
            batch = self.train.at(units, self.device)
            inputs = self.augment(batch.inputs)
            loss, place = self._loss(inputs, batch.labels), f"epoch {self.epochs}, step {i}"
            losses.append(self.student.step(inputs, loss, self.learning_rate(step), place))
        self.student.check()
        self.loss = float(torch.stack(losses).mean())

    def _loss(self, inputs: Inputs, labels: Any) -> Callable[[Any], Tensor]:
        """Of what the model returns for ``inputs``: the weighed sum of the divergence from the dense model and the loss on labels."""
        share, task = self.config.distillation if labels is not None else 1.0, self.task
        with torch.no_grad():
            target = task.run(self.dense, inputs) if share else None

        def loss(raw: Any) -> Tensor:
            outputs = task.outputs(task.picked(raw), inputs)
            parts = [] if target is None else [share * task.loss(outputs, target, self.config.temperature)]
            return torch.stack([*parts, *([(1 - share) * task.supervised(outputs, labels)] if share < 1 else [])]).sum()

        return loss

    def learning_rate(self, step: int) -> float:
        """That of the step after ``step`` finished ones."""
        total, warm = self.config.epochs * self.steps, self.config.warmup * self.steps
        rise = min(1.0, (step + 1) / warm) if warm else 1.0
        return self.config.learning_rate * rise * cosine(max(0.0, step - warm) / max(1.0, total - warm))

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on, as tensors and numbers."""
        return {"epochs": self.epochs, **self.student.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken, of a recovery of the same model, plan, data and configuration."""
        self.epochs = state["epochs"]
        self.student.load_state_dict(state)
