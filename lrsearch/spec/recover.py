"""RecoverConfig: how a chosen member of the front is finetuned at length."""

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field

from lrsearch.spec.space import DottedPath, Positive, Strict
from lrsearch.spec.training import Augment, TrainingConfig

MOST_CYCLES = 3  # of 24 epochs: 6, 6 and 12


class GradualConfig(Strict):
    """S starts denser and loses values on a cubic schedule (Zhu & Gupta 2017).

    ``start`` is the share of what S leaves out that it has at first, ``until`` the share of all steps after
    which it has its plan's density. The smallest go first: by magnitude times the inputs' scale, or by
    magnitude alone. S of a pattern n:m keeps its density.
    """

    start: Annotated[float, Field(gt=0, le=1)] = 0.5
    until: Annotated[float, Field(gt=0, lt=1)] = 0.5
    importance: Literal["scaled", "magnitude"] = "scaled"


class RecoverConfig(TrainingConfig):
    """A full finetune, in cycles. In each the learning rate rises for ``warmup`` epochs, at most a quarter of it, then falls to 0.

    ``distillation`` is the weight of the distance from the dense model, computed on the augmented inputs; the rest
    of the weight is the cross entropy with the labels. ``augment`` is ``auto`` (``flip-crop`` for images, else none), ``none``,
    ``flip-crop``, or a dotted path to ``f(inputs) -> inputs`` on a batch, which draws from torch's own generator.
    ``batchnorm: frozen`` normalises by the statistics that the member has; ``free`` by the batch's, which move them. Frozen, four epochs
    took ResNet-20 with 20 % of its parameters to a KL of 0.143, where eight of ``free``, at another rate, left 0.149; a plan that had lost
    5 points came further with ``free`` (``studies/results``, ``targets_resnet20.txt`` and ``targets_int8_resnet20.txt``).
    It stops after ``patience`` cycles in a row at whose ends held-out examples say that nothing became better.
    """

    epochs: Positive = 10
    warmup: Annotated[float, Field(ge=0)] = 1.0
    patience: Positive = 2
    augment: Augment | DottedPath = "auto"
    distillation: Annotated[float, Field(ge=0, le=1)] = 1.0
    batchnorm: Literal["frozen", "free"] = "frozen"
    gradual: GradualConfig | None = None

    @property
    def ends(self) -> tuple[int, ...]:
        """Epochs at the end of each cycle, which takes as long as all before it; a single one where S gets sparse little by little."""
        cycles = 1 if self.gradual else MOST_CYCLES
        return tuple(sorted({self.epochs >> k for k in range(cycles)} - {0}))

    @property
    def longest(self) -> int:
        """Epochs of the longest cycle, in which the learning rate falls once."""
        return max(end - start for start, end in pairwise((0, *self.ends)))
