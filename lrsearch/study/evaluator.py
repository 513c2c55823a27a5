"""Evaluator: plan and fits → score, on one working copy of the model."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lrsearch.compress.apply import compress, write_effective
from lrsearch.compress.fit import Decomposition
from lrsearch.compress.storage import Storage
from lrsearch.errors import ScoreError
from lrsearch.spec.config import ProxyConfig
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.plan import Plan
from lrsearch.spec.score import Score
from lrsearch.task.data import Examples
from lrsearch.task.memory import BatchSize, Note, logged, out_of_memory
from lrsearch.task.scoring import Metric, check_labels, losses, predict, score, top1
from lrsearch.train.batchnorm import Correction, norms
from lrsearch.train.finetune import Training, batch_order


@dataclass(frozen=True)
class Scored:
    """A candidate and what it scored.

    Attributes:
        score: on the score data.
        outputs: its logits there, ``(n, classes)``, on the CPU.
        fits: its factors, before rounding.
        state: tells whether the working copy still holds it: a number for each of its tensors that every write raises.
    """

    score: Score
    outputs: Tensor
    fits: Mapping[str, Decomposition]
    state: tuple[int, ...]


class Evaluator:
    """Scores candidates; the base model is never touched.

    The working copy stays dense: L + S is written into its weights, so that a score costs the
    forward passes and nothing else. It holds one candidate at a time.

    Args:
        model: the dense model.
        calibration: for BatchNorm; its last ``held_out`` share decides whether that helps.
        scoring: data that rank the candidates.
        train: data to finetune on; None without finetuning.
        storage: how values will be stored: every score is of values so rounded.
        note: told of what a user should know; the log by default.

    Attributes:
        baseline: the dense model's own score.
        batch: examples at a time.
    """

    def __init__(
        self, model: nn.Module, calibration: Examples, scoring: Examples, train: Examples | None,
        config: ProxyConfig, metric: Metric, device: str = "cpu", storage: Storage | None = None, note: Note = logged,
    ) -> None:
        self.storage, self.batch, self._note = storage or Storage(), BatchSize(config.batch, note), note
        self.config, self.metric, self.device, self.scoring = config, metric, device, scoring
        self.work = copy.deepcopy(model).to(device).eval()
        self._base = {k: v.clone() for k, v in self.work.state_dict().items()}
        cut = max(1, round(len(calibration) * (1 - config.held_out)))
        self.fit = calibration.part(range(cut))
        self.held_out = calibration.part(range(min(cut, len(calibration) - 1), len(calibration)))
        self._reference = self._predict(scoring)
        check_labels(self._reference, scoring)
        self.correction = Correction(self.work, self.fit, self.held_out, self.batch, device, self._base)
        self._fair: list[tuple[Examples, Correction | None]] = []
        self._labels = scoring.labels().cpu()
        self.train, self._teacher = train, self._teach(train)
        self.baseline = score(self._reference, self._reference, self._labels, metric, 0, False, "baseline")

    def inputs(self, part: Examples, batch: int) -> Iterator[Tensor]:
        """The inputs of ``part``, in batches."""
        return (x for x, _ in part.batches(batch, self.device))

    def _predict(self, examples: Examples) -> Tensor:
        return predict(self.work, examples, self.batch, self.device)

    def _teach(self, train: Examples | None) -> Tensor | None:
        return self._predict(train) if train and self.config.finetune.steps else None

    def score(self, fits: Mapping[str, Decomposition], place: str) -> Scored:
        """Rung 0: no training. Afterwards the working copy holds the candidate.

        Raises:
            ScoreError: the candidate's outputs are not finite.
        """
        return self._scored(fits, 0, self._start(fits), place)

    def _start(self, fits: Mapping[str, Decomposition]) -> bool:
        """Make the working copy the candidate before training; returns whether BatchNorm was corrected."""
        self.work.load_state_dict(self._base)
        self._write(fits)
        return self._corrects and self.correction.apply_if_better(self.work, None)

    def training(self, fits: Mapping[str, Decomposition], state: Mapping[str, Any] | None = None) -> Training:
        """The finetune of a candidate, from its start or from where ``state``, its :meth:`Training.state_dict`, was taken."""
        if state is None:
            self._start(fits)
            return self._training(fits)
        self.work.load_state_dict(self._base)
        training = self._training(fits)
        training.load_state_dict(state)
        return training

    def trained(self, training: Training, until: int, place: str, corrected: bool) -> Scored:
        """Go on with a finetune to ``until`` finished steps; afterwards the working copy holds the candidate.

        Args:
            corrected: whether BatchNorm was corrected before training; settles it, where training left its statistics alone.

        Returns:
            The score, with the trained factors.

        Raises:
            ScoreError: the loss or the outputs are not finite, or a training step does not fit into memory.
        """
        try:
            fits = training.run(until)
        except Exception as error:
            if not out_of_memory(error):
                raise
            raise ScoreError(
                "a finetune step must fit into memory", value=f"{type(error).__name__}: {error}", place=place,
                remedy="Lower proxy.finetune.batch, or free memory.",
            ) from error
        return self.rescored(fits, until, place, corrected if training.config.batchnorm == "frozen" else None, training.train)

    def _training(self, fits: Mapping[str, Decomposition]) -> Training:
        assert self.train is not None
        assert self._teacher is not None
        return Training(self.work, fits, self.train, self._teacher, self.config.finetune, self.device)

    def losses(self, scored: Scored, objective: str) -> Tensor | None:
        """What ``scored`` lost on each example, ``(n,)``, on the CPU; None for a metric of the user's, which is of all at once."""
        known = objective == "kl" or self.metric is top1
        return losses(scored.outputs, self._reference, self._labels, objective) if known else None

    def begin(self, fits: Mapping[str, Decomposition], state: Mapping[str, Tensor]) -> None:
        """Make the working copy a candidate whose other parameters and statistics are those of ``state``."""
        self.work.load_state_dict({**self._base, **{k: v for k, v in state.items() if k in self._base}})
        write_effective(self.work, fits)

    def rescored(
        self, fits: Mapping[str, Decomposition], fidelity: int, place: str, settled: bool | None, trained_on: Examples,
    ) -> Scored:
        """Score a candidate that was trained in the working copy for ``fidelity`` steps.

        Args:
            settled: whether its BatchNorm was corrected before, if that is known: see :meth:`Correction.apply_if_better`.
            trained_on: these examples have no say about its BatchNorm; where no others are held out, it stays as training left it.

        Raises:
            ScoreError: its outputs are not finite.
        """
        self._write(fits)
        fair = self._corrected_by(trained_on) if self._corrects else None
        batchnorm = fair.apply_if_better(self.work, settled) if fair else self._corrects and bool(settled)
        return self._scored(fits, fidelity, batchnorm, place)

    def _corrected_by(self, trained_on: Examples) -> Correction | None:
        """The correction that held-out examples decide about which were not trained on, or None if there are none; told once."""
        for examples, known in self._fair:
            if examples is trained_on:
                return known
        fair = self.correction.without(trained_on)
        self._fair.append((trained_on, fair))
        if fair is None and norms(self.work):
            self._note("all held-out calibration examples were trained on: BatchNorm stays as it was settled before each finetune")
        return fair

    def taught(self, examples: Examples) -> Tensor:
        """The dense model's logits ``(n, classes)``; afterwards the working copy is dense."""
        self.work.load_state_dict(self._base)
        return self._predict(examples)

    def compressed(self, layers: tuple[LayerSpec, ...], plan: Plan, scored: Scored) -> nn.Module:
        """The candidate ``scored``, as a compressed model on the CPU.

        Raises:
            ValueError: the working copy no longer holds it.
        """
        if scored.state != self._state():
            raise ValueError("the working copy must hold the candidate that was scored; something was written into it since")
        return compress(self.work, layers, plan, self.storage.rounded(scored.fits)).cpu()

    def _state(self) -> tuple[int, ...]:
        return tuple(tensor._version for tensor in self.work.state_dict(keep_vars=True).values())

    def _write(self, fits: Mapping[str, Decomposition]) -> None:
        """Make the working copy what will be stored of it."""
        write_effective(self.work, self.storage.rounded(fits))
        self.storage.round_dense(self.work, besides=fits)

    @property
    def _corrects(self) -> bool:
        return self.config.batchnorm == "auto"

    def _scored(self, fits: Mapping[str, Decomposition], fidelity: int, batchnorm: bool, place: str) -> Scored:
        outputs = self._predict(self.scoring)
        found = score(outputs, self._reference, self._labels, self.metric, fidelity, batchnorm, place)
        return Scored(found, outputs, fits, self._state())


def training_part(train: Examples, config: ProxyConfig) -> Examples:
    """The examples that the finetune really uses, so that no more than those are read."""
    if not config.finetune.steps:
        return train.part(range(1))
    used = torch.unique(batch_order(len(train), config.finetune)).tolist()
    return train if len(used) == len(train) else train.part(used)
