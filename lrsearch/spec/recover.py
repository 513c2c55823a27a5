"""RecoverConfig: how a chosen member of the front is finetuned at length."""

from typing import Annotated, Literal

from pydantic import Field

from lrsearch.spec.space import DottedPath, Positive, Strict
from lrsearch.spec.training import Augment, TrainingConfig


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
    """A full finetune: a linear warm-up of the learning rate over ``warmup`` epochs, then a cosine to 0.

    ``distillation`` is the weight of the distance from the dense model, computed on the augmented inputs; the rest
    of the weight is the cross entropy with the labels. ``augment`` is ``auto`` (``flip-crop`` for images, else none), ``none``,
    ``flip-crop``, or a dotted path to ``f(inputs) -> inputs`` on a batch, which draws from torch's own generator.
    It stops after ``patience`` epochs in which held-out examples say that nothing became better.
    """

    epochs: Positive = 10
    warmup: Annotated[float, Field(ge=0)] = 1.0
    patience: Positive = 5
    augment: Augment | DottedPath = "auto"
    distillation: Annotated[float, Field(ge=0, le=1)] = 1.0
    batchnorm: Literal["frozen", "free"] = "free"
    gradual: GradualConfig | None = None
