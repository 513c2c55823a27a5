"""Evaluator: plan and fits → score, on one working copy of the model."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lrsearch.compress.apply import compress, write_effective
from lrsearch.compress.faithful import refuse_unfaithful
from lrsearch.compress.fit import Decomposition
from lrsearch.compress.parametrised import copied
from lrsearch.compress.storage import Storage
from lrsearch.deploy.int8 import Int8
from lrsearch.errors import ScoreError
from lrsearch.spec.config import FinetuneConfig, Precision, ProxyConfig
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.plan import Plan
from lrsearch.spec.recover import RecoverConfig
from lrsearch.spec.score import Score
from lrsearch.spec.training import Recipe
from lrsearch.study.parts import split_calibration
from lrsearch.study.polisher import Polisher
from lrsearch.task.base import Task
from lrsearch.task.data import Examples
from lrsearch.task.forward import Inputs, device_of, state_tensors
from lrsearch.task.memory import BatchSize, Note, logged, out_of_memory
from lrsearch.task.scoring import Comparison, Reference
from lrsearch.train.batchnorm import Correction, norms
from lrsearch.train.finetune import Training
from lrsearch.train.range_test import RangeTest, range_test, short
from lrsearch.train.teacher import Teacher

COMPARED = 8  # examples whose outputs tell that a saved model is the one that was scored
RANGED = 128  # examples; the ranges of activations of more are hardly wider


@dataclass(frozen=True)
class Scored:
    """A candidate and what it scored.

    Attributes:
        score: on the score data.
        comparison: with the dense model, example by example.
        fits: its factors, before rounding.
        state: tells whether the working copy still holds it: a number for each of its tensors that every write raises.
    """

    score: Score
    comparison: Comparison
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
        task: says how far outputs are apart, and how good they are.
        storage: how values will be stored: every score is of values so rounded.
        precision: that is deployed: with ``int8``, weights and layers' inputs are rounded likewise for every score, but the dense model's.
        note: told of what a user should know; the log by default.

    Attributes:
        baseline: the dense model's own score.
        chance: that of a model which does not look at its inputs; None where that is not known.
        batch: examples at a time.
        teacher: the dense model as finetunes need it; None without finetuning.
        recipe: of finetunes; None where it is to be found.
    """

    def __init__(
        self, model: nn.Module, calibration: Examples, scoring: Examples, train: Examples | None,
        config: ProxyConfig, task: Task, device: str = "cpu", storage: Storage | None = None, note: Note = logged,
        precision: Precision = "float32",
    ) -> None:
        self.storage, self.batch, self._note = storage or Storage(), BatchSize(config.batch, note), note
        self.config, self.task, self.device, self.scoring = config, task, device, scoring
        self._home = device_of(model)
        self.work = copy.deepcopy(model).to(device).eval()
        self._base = copy.deepcopy(self.work.state_dict())
        self.fit, self.held_out = split_calibration(calibration, config.held_out)
        self._reference = self.outputs_of(scoring)
        self.correction = Correction(self.work, self.fit, self.held_out, self.batch, task, device, self._base)
        self._int8 = Int8(self.work, self.batch.run(self._ranged)) if precision == "int8" else None
        self._fair: list[tuple[Examples, Correction | None]] = []
        self._polisher = Polisher(self.fit, self.batch, task, device, note)
        self.teacher = self.taught(train, config.finetune) if train and config.finetune.steps else None
        self.recipe = config.finetune.recipe
        self.baseline = self._reference.itself(self.work, "baseline").score(0, False, "baseline")
        self.chance = self._reference.blind()

    def inputs(self, part: Examples, batch: int) -> Iterable[Inputs]:
        """The inputs of ``part``, in batches, as often as they are asked for."""
        return _Inputs(part, batch, self.device)

    def _ranged(self, batch: int) -> list[Inputs]:
        """Calibration inputs that give the ranges of activations."""
        return list(self.inputs(self.fit.part(range(min(self.fit.units, RANGED))), batch))

    def outputs_of(self, examples: Examples) -> Reference:
        """What the dense model returns for ``examples``; afterwards the working copy is dense."""
        self.work.load_state_dict(self._base)
        return Reference(self.task, self.work, examples, self.batch, self.device)

    def dense(self) -> nn.Module:
        """A copy of the dense model, on the device on which it came; the working copy is left as it is."""
        made = copied(self.work)
        made.load_state_dict(self._base)
        return made.to(self._home)

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

    def taught(self, train: Examples, config: FinetuneConfig | RecoverConfig) -> Teacher:
        """The dense model as finetunes on ``train`` need it; afterwards the working copy is dense."""
        self.work.load_state_dict(self._base)
        return Teacher(self.work, self.task, train, config, self.batch, self.device)

    def training(
        self, fits: Mapping[str, Decomposition], state: Mapping[str, Any] | None = None, teacher: Teacher | None = None,
        config: FinetuneConfig | None = None,
    ) -> Training:
        """The finetune of a candidate, from its start or from where ``state``, its :meth:`Training.state_dict`, was taken.

        Args:
            fits: the candidate.
            state: where it paused.
            teacher: another than the study's.
            config: another than the study's.

        The recipe is found with this candidate where it is not known.
        """
        teacher, config = teacher or self.teacher, config or self.config.finetune
        assert teacher is not None
        if self.recipe is None and fits:
            self.recipe = self.range_test(fits, teacher, config).recipe
        loss, rate, polishes = self.recipe or Recipe(config.loss, 0.0)
        if state is None:
            fits, _ = self._begun(fits, teacher.dense, polishes)
        else:
            self.work.load_state_dict(self._base)
        training = Training(self.work, fits, teacher.lowering(loss), config, rate)
        if state is not None:
            training.load_state_dict(state)
        return training

    def _begun(self, fits: Mapping[str, Decomposition], dense: nn.Module, polishes: bool) -> tuple[Mapping[str, Decomposition], bool]:
        """Make the working copy what a finetune begins with: the candidate, polished where held-out calibration data find that better.

        Returns:
            Its factors, and whether they are polished.
        """
        self._start(fits)
        may_shift = self._corrects or not norms(self.work)  # a polish shifts BatchNorm's statistics
        if not (polishes and fits and may_shift):
            return fits, False
        before, found = self.correction.divergence(self.work), self._polisher.polished(fits, dense)
        if found is not None:
            self.begin(found.fits, found.tensors)
            self._write(found.fits)  # rounded, as what it is compared with
            if self.correction.divergence(self.work) < before:
                self.begin(found.fits, found.tensors)
                return found.fits, True
            self._start(fits)
        return fits, False

    def range_test(
        self, fits: Mapping[str, Decomposition], teacher: Teacher | None = None, config: FinetuneConfig | None = None,
    ) -> RangeTest:
        """Which loss and learning rate suit finetunes, by short ones of this candidate, and whether a polish does; see :meth:`training`."""
        teacher, config = teacher or self.teacher, config or self.config.finetune
        assert teacher is not None
        fits, polished = self._begun(fits, teacher.dense, config.polish)
        brief, start = short(config), copy.deepcopy(self.work.state_dict())

        def begun(recipe: Recipe) -> Training:
            self.work.load_state_dict(start)
            return Training(self.work, fits, teacher.lowering(recipe.loss), brief, recipe.learning_rate)

        with fitting("the range test of the learning rate"):
            return replace(range_test(begun, teacher.losses, config.longest), polished=polished)

    def trained(self, training: Training, until: int, place: str, corrected: bool) -> Scored:
        """Go on with a finetune to ``until`` finished steps; afterwards the working copy holds the candidate.

        Args:
            corrected: whether BatchNorm was corrected before training; settles it, where training left its statistics alone.

        Returns:
            The score, with the trained factors.

        Raises:
            ScoreError: the loss or the outputs are not finite, or a training step does not fit into memory.
        """
        with fitting(place):
            fits = training.run(until)
        settled = corrected if training.config.batchnorm == "frozen" else None
        return self.rescored(fits, until, place, settled, training.teacher.train)

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

    def compressed(self, layers: tuple[LayerSpec, ...], plan: Plan, scored: Scored) -> nn.Module:
        """The candidate ``scored``, as a compressed model on the CPU that was seen to return what the working copy does.

        Raises:
            ValueError: the working copy no longer holds it.
            ModelError: it returns something else.
        """
        if scored.state != self._state():
            raise ValueError("the working copy must hold the candidate that was scored; something was written into it since")
        small = compress(self.work, layers, plan, self.storage.rounded(scored.fits))
        batch = next(iter(self.inputs(self.fit.part(range(min(self.fit.units, COMPARED))), COMPARED)))
        refuse_unfaithful(small, self.work, [layer for layer in layers if layer.name in plan.layers], batch, "the compressed model")
        return small.cpu()

    def _state(self) -> tuple[int, ...]:
        return tuple(tensor._version for tensor in state_tensors(self.work).values())

    def _write(self, fits: Mapping[str, Decomposition]) -> None:
        """Make the working copy what will be stored of it."""
        write_effective(self.work, self.storage.rounded(fits))
        self.storage.round_dense(self.work, besides=fits)

    @property
    def _corrects(self) -> bool:
        return self.config.batchnorm == "auto"

    def _scored(self, fits: Mapping[str, Decomposition], fidelity: int, batchnorm: bool, place: str) -> Scored:
        with self._int8.applied(self.storage.rounded(fits)) if self._int8 else nullcontext():
            found = self._reference.compare(self.work, place)
        return Scored(found.score(fidelity, batchnorm, place), found, fits, self._state())

    def dense_in_int8(self) -> Score:
        """What the dense model scores in int8; afterwards the working copy is dense."""
        self.work.load_state_dict(self._base)
        int8 = self._int8 or Int8(self.work, self.batch.run(self._ranged))
        with int8.applied({}):
            return self._reference.compare(self.work, "dense int8").score(0, False, "dense int8")

    def in_float32(self, scored: Scored, place: str) -> Score | None:
        """What ``scored``, which the working copy holds, scores as it is saved; None where that is its score."""
        if self._int8 is None or scored.state != self._state():
            return None
        return self._reference.compare(self.work, place).score(scored.score.fidelity, scored.score.batchnorm, place)


@contextmanager
def fitting(place: str, batch: str = "proxy.finetune.batch") -> Iterator[None]:
    """What trains in here and does not fit into memory is a :class:`ScoreError` at ``place``; ``batch`` is the setting to lower."""
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        raise ScoreError(
            "a finetune step must fit into memory", value=f"{type(error).__name__}: {error}", place=place,
            remedy=f"Lower {batch}, or free memory.",
        ) from error


@dataclass(frozen=True)
class _Inputs:
    """See :meth:`Evaluator.inputs`."""

    part: Examples
    batch: int
    device: torch.device | str

    def __iter__(self) -> Iterator[Inputs]:
        return (each.inputs for each in self.part.batches(self.batch, self.device))
