"""RecoverConfig: how a chosen member of the front is finetuned at length."""

from typing import Annotated, Literal

from pydantic import Field

from lrsearch.spec.space import MOST, DottedPath, Positive, Seed, Strict


class GradualConfig(Strict):
    """S starts denser and loses values on a cubic schedule (Zhu & Gupta 2017).

    ``start`` is the share of what S leaves out that it has at first, ``until`` the share of all steps after
    which it has its plan's density. The smallest go first: by magnitude times the inputs' scale, or by
    magnitude alone. S of a pattern n:m keeps its density.
    """

    start: Annotated[float, Field(gt=0, le=1)] = 0.5
    until: Annotated[float, Field(gt=0, lt=1)] = 0.5
    importance: Literal["scaled", "magnitude"] = "scaled"


class RecoverConfig(Strict):
    """A full finetune: SGD with Nesterov momentum 0.9, a linear warm-up over ``warmup`` epochs, then a cosine to 0.

    ``distillation`` is the weight of the divergence from the dense model, computed on the augmented inputs; the rest
    of the weight is the cross entropy with the labels. ``augment`` is ``none``, ``flip-crop``, or a dotted path to
    ``f(inputs) -> inputs`` on a batch, which draws from torch's own generator.
    """

    epochs: Positive = 10
    batch: Annotated[int, Field(ge=2, le=MOST)] = 128
    learning_rate: Annotated[float, Field(gt=0)] = 0.01
    warmup: Annotated[float, Field(ge=0)] = 1.0
    augment: Literal["none", "flip-crop"] | DottedPath = "none"
    distillation: Annotated[float, Field(ge=0, le=1)] = 1.0
    temperature: Annotated[float, Field(gt=0)] = 1.0
    batchnorm: Literal["frozen", "free"] = "free"
    clip: Annotated[float, Field(gt=0)] = 5.0
    gradual: GradualConfig | None = None
    seed: Seed = 0
