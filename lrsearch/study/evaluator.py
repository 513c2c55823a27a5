"""Evaluator: plan and fits → score, on one working copy of the model."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lrsearch.compress.apply import compress, write_effective
from lrsearch.compress.fit import Decomposition
from lrsearch.compress.storage import Storage
from lrsearch.spec.config import ProxyConfig
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.plan import Plan
from lrsearch.spec.score import Score
from lrsearch.task.data import Examples
from lrsearch.task.scoring import Metric, check_labels, losses, predict, score, top1
from lrsearch.train.batchnorm import Correction
from lrsearch.train.finetune import Training, batch_order


class Evaluator:
    """Scores candidates; the base model is never touched.

    The working copy stays dense: L + S is written into its weights, so that a score costs the
    forward passes and nothing else.

    Args:
        model: the dense model.
        calibration: for BatchNorm; its last ``held_out`` share decides whether that helps.
        scoring: data that rank the candidates.
        train: data to finetune on; None without finetuning.
        storage: how values will be stored: every score is of values so rounded.

    Attributes:
        baseline: the dense model's own score.
    """

    def __init__(
        self, model: nn.Module, calibration: Examples, scoring: Examples, train: Examples | None,
        config: ProxyConfig, metric: Metric, device: str = "cpu", storage: Storage | None = None,
    ) -> None:
        self.storage = storage or Storage()
        self.config, self.metric, self.device, self.scoring = config, metric, device, scoring
        self.work = copy.deepcopy(model).to(device).eval()
        self._base = {k: v.clone() for k, v in self.work.state_dict().items()}
        cut = max(1, round(len(calibration) * (1 - config.held_out)))
        self.fit = calibration.part(range(cut))
        self.held_out = calibration.part(range(min(cut, len(calibration) - 1), len(calibration)))
        self._reference = predict(self.work, scoring, config.batch, device)
        check_labels(self._reference, scoring)
        self.correction = Correction(self.work, self.fit, self.held_out, config.batch, device)
        self._labels = scoring.labels().cpu()
        self.train, self._teacher = train, self._teach(train)
        self.baseline = self._score(0, False, "baseline", self._reference)

    def inputs(self, part: Examples, batch: int) -> Iterator[Tensor]:
        """The inputs of ``part``, in batches."""
        return (x for x, _ in part.batches(batch, self.device))

    def _teach(self, train: Examples | None) -> Tensor | None:
        return predict(self.work, train, self.config.batch, self.device) if train and self.config.finetune.steps else None

    def score(self, fits: Mapping[str, Decomposition], place: str) -> Score:
        """Rung 0: no training. Afterwards the working copy holds the candidate.

        Raises:
            ScoreError: the candidate's outputs are not finite.
        """
        return self._score(0, self._start(fits), place)

    def _start(self, fits: Mapping[str, Decomposition]) -> bool:
        """Make the working copy the candidate before training; returns whether BatchNorm was corrected."""
        self.work.load_state_dict(self._base)
        self._write(fits)
        return self._correct()

    def training(self, fits: Mapping[str, Decomposition], state: Mapping[str, Any] | None = None) -> Training:
        """The finetune of a candidate, from its start or from where ``state``, its :meth:`Training.state_dict`, was taken."""
        if state is None:
            self._start(fits)
            return self._training(fits)
        self.work.load_state_dict(self._base)
        training = self._training(fits)
        training.load_state_dict(state)
        return training

    def trained(self, training: Training, until: int, place: str, corrected: bool) -> tuple[Score, dict[str, Decomposition]]:
        """Go on with a finetune to ``until`` finished steps; afterwards the working copy holds the candidate.

        Args:
            corrected: whether BatchNorm was corrected before training; settles it, where training left its statistics alone.

        Returns:
            The score and the trained factors, before rounding.

        Raises:
            ScoreError: the loss or the outputs are not finite.
        """
        fits = training.run(until)
        return self.rescored(fits, until, place, corrected if training.config.batchnorm == "frozen" else None), fits

    def _training(self, fits: Mapping[str, Decomposition]) -> Training:
        assert self.train is not None
        assert self._teacher is not None
        return Training(self.work, fits, self.train, self._teacher, self.config.finetune, self.device)

    def losses(self, objective: str) -> Tensor | None:
        """What each example lost at the last score, ``(n,)``, on the CPU; None for a metric of the user's, which is of all at once."""
        known = objective == "kl" or self.metric is top1
        return losses(self._outputs, self._reference, self._labels, objective) if known else None

    def begin(self, fits: Mapping[str, Decomposition], state: Mapping[str, Tensor]) -> None:
        """Make the working copy a candidate whose other parameters and statistics are those of ``state``."""
        self.work.load_state_dict({**self._base, **{k: v for k, v in state.items() if k in self._base}})
        write_effective(self.work, fits)

    def rescored(self, fits: Mapping[str, Decomposition], fidelity: int, place: str, settled: bool | None) -> Score:
        """Score a candidate that was trained in the working copy for ``fidelity`` steps.

        Args:
            settled: whether its BatchNorm was corrected before, if that is known: see :meth:`Correction.apply_if_better`.

        Raises:
            ScoreError: its outputs are not finite.
        """
        self._write(fits)
        return self._score(fidelity, self._correct(settled), place)

    def taught(self, examples: Examples) -> Tensor:
        """The dense model's logits ``(n, classes)``; afterwards the working copy is dense."""
        self.work.load_state_dict(self._base)
        return predict(self.work, examples, self.config.batch, self.device)

    def compressed(self, layers: tuple[LayerSpec, ...], plan: Plan, fits: Mapping[str, Decomposition]) -> nn.Module:
        """The candidate that the working copy holds, as a compressed model on the CPU."""
        return compress(self.work, layers, plan, self.storage.rounded(fits)).cpu()

    def _write(self, fits: Mapping[str, Decomposition]) -> None:
        """Make the working copy what will be stored of it."""
        write_effective(self.work, self.storage.rounded(fits))
        self.storage.round_dense(self.work, besides=fits)

    def _correct(self, settled: bool | None = None) -> bool:
        return self.config.batchnorm == "auto" and self.correction.apply_if_better(self.work, settled)

    def _score(self, fidelity: int, batchnorm: bool, place: str, outputs: Tensor | None = None) -> Score:
        self._outputs = predict(self.work, self.scoring, self.config.batch, self.device) if outputs is None else outputs
        return score(self._outputs, self._reference, self._labels, self.metric, fidelity, batchnorm, place)


def training_part(train: Examples, config: ProxyConfig) -> Examples:
    """The examples that the finetune really uses, so that no more than those are read."""
    if not config.finetune.steps:
        return train.part(range(1))
    used = torch.unique(batch_order(len(train), config.finetune)).tolist()
    return train if len(used) == len(train) else train.part(used)
