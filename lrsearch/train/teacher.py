"""Teacher: the dense model as a finetune needs it: what a student's stages and outputs are to be, and how far they still are."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lrsearch.errors import ConfigError
from lrsearch.spec.config import FinetuneConfig
from lrsearch.spec.recover import RecoverConfig
from lrsearch.spec.training import Loss
from lrsearch.task.augment import load_augment
from lrsearch.task.base import Task
from lrsearch.task.data import Batch, Examples
from lrsearch.task.forward import Inputs, autocast, inference
from lrsearch.task.memory import BatchSize
from lrsearch.task.scoring import Reference
from lrsearch.train.stages import Features, feature_loss, find_stages, named_stages

Settings = FinetuneConfig | RecoverConfig
MOST_HELD_OUT = 2048  # examples; forward alone, as many take as long as five steps of 128; see typical() for what fewer did


def split_training(train: Examples, config: Settings) -> tuple[Examples, Examples]:
    """The examples that are trained on, and those that judge; the same ones, where there is but one unit."""
    held_out = min(max(1, round(config.held_out * train.units)), MOST_HELD_OUT, train.units - 1)
    order = torch.randperm(train.units, generator=torch.Generator().manual_seed(config.seed)).tolist()
    return (train.part(sorted(order[held_out:])), train.part(sorted(order[:held_out]))) if held_out else (train, train)


class Teacher:
    """Knows the dense model, the training data and the loss.

    Args:
        dense: the model; not changed.
        task: says which outputs count and how far they are apart.
        train: examples to train on, some of which judge; see :func:`split_training`.
        config: the loss, and how inputs are changed at random.
        sizes: how many examples are run at a time.
        device: where to compute.

    Attributes:
        fit: the examples that are trained on.
        held_out: those that judge.
        stages: the modules whose outputs count; none where outputs alone do.
        lowered: the loss, never ``auto``.

    Raises:
        ConfigError: a stage is no module, or ``features`` are wanted of a model that has no stages.
    """

    def __init__(
        self, dense: nn.Module, task: Task, train: Examples, config: Settings, sizes: BatchSize, device: torch.device | str = "cpu",
    ) -> None:
        self.task, self.train, self.config, self.device = task, train, config, device
        self.fit, self.held_out = split_training(train, config)
        self.dense = copy.deepcopy(dense).to(device).eval()
        sample = self.fit.at(torch.arange(self.fit.draws(2)), device).inputs
        self.augment = load_augment(config.augment, sample)
        self.judge = Reference(task, self.dense, self.held_out, sizes, device)  # refuses data that do not suit the model
        self.stages = self._stages(sample)
        self.lowered: Loss = self.losses[0]

    @property
    def losses(self) -> tuple[Loss, ...]:
        """Those that a range test chooses from, the first one first: what ``auto`` may be, or the one that is configured."""
        if not self.stages:
            return ("outputs",)
        return ("features", "both") if self.config.loss == "auto" else (self.config.loss,)

    def lowering(self, loss: Loss) -> "Teacher":
        """The same, of another loss; ``auto`` is the first of :attr:`losses`."""
        other = copy.copy(self)
        other.lowered = self.losses[0] if loss == "auto" else loss
        return other

    def _stages(self, sample: Inputs) -> tuple[str, ...]:
        if self.config.loss == "outputs":
            return ()
        found = named_stages(self.dense, self.config.stages) if self.config.stages else find_stages(self.dense, sample)
        if self.config.loss == "features" and not found:
            rule, remedy = "the loss of features needs a model with stages", "Name modules in stages, or take loss: outputs."
            raise ConfigError(rule, value="none found", place="loss", remedy=remedy)
        return found

    def batch(self, units: Tensor, seed: Sequence[int]) -> Batch:
        """The examples at ``units``, changed at random as ``seed`` decides."""
        batch = self.fit.at(units, self.device)
        if self.augment is None:
            return batch
        with seeded(seed, self.device):
            return Batch(self.augment(batch.inputs), batch.labels)

    def loss(self, batch: Batch, watched: Features, share: float = 1.0) -> Callable[[Any], Tensor]:
        """What a student lowers, of what it returns for the inputs of ``batch``.

        Args:
            batch: as the student sees it.
            watched: records what the student's stages return.
            share: of the distance from the dense model; the rest is the loss on labels, where there are any.
        """
        inputs, labels, share = batch.inputs, batch.labels, 1.0 if batch.labels is None else share
        with torch.no_grad(), autocast(self.device, self.config.autocast), self.watching(self.dense) as seen:
            target = self.task.run(self.dense, inputs)
            wanted = seen.taken()

        def loss(raw: Any) -> Tensor:
            found, outputs, parts = watched.taken(), self.task.outputs(self.task.picked(raw), inputs), []
            if share and self.lowered != "outputs":
                parts.append(share * feature_loss(found, wanted))
            if share and self.lowered != "features":
                parts.append(share * self.task.loss(outputs, target, self.config.temperature))
            if share < 1:
                parts.append((1 - share) * self.task.supervised(outputs, labels))
            return torch.stack(parts).sum()

        return loss

    def watching(self, model: nn.Module) -> Features:
        """Records what the stages of ``model`` return."""
        return Features(model, self.stages)

    def divergences(self, model: nn.Module) -> Tensor:
        """How far ``model`` is from the dense one on each held-out example, ``(n,)``; infinite where that is no number."""
        return self.judge.compare(model, measured=False).divergences.nan_to_num(math.inf, math.inf, math.inf)

    def loss_on_labels(self, model: nn.Module) -> float:
        """What the task says of ``model`` and the labels of the held-out examples, the mean over batches."""
        with inference(model):
            found = [
                float(self.task.supervised(self.task.run(model, batch.inputs), batch.labels))
                for batch in self.held_out.batches(self.judge.sizes.size, self.device)
            ]
        return sum(found) / len(found)


@contextmanager
def seeded(seed: Sequence[int], device: torch.device | str) -> Iterator[None]:
    """torch's own generators, started from ``seed``; afterwards they are as they were."""
    with torch.random.fork_rng(devices=[device] if torch.device(device).type == "cuda" else []):
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        yield
