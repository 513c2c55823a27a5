"""TrainingConfig: what a short finetune and a recovery have in common."""

from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from lrsearch.spec.space import MOST, Seed, Strict

Loss = Literal["auto", "features", "outputs", "both"]
Optimizer = Literal["adam", "sgd"]
Augment = Literal["auto", "none", "flip-crop"]
Autocast = Literal["none", "bfloat16"]


class Recipe(NamedTuple):
    """What a range test finds: the loss to lower, the learning rate to begin with, and whether a polish before may be worth its time."""

    loss: Loss
    learning_rate: float
    polish: bool = False


class TrainingConfig(Strict):
    """How a compressed model is trained towards the dense one; labels are not needed.

    ``loss``: ``outputs`` is the task's divergence; ``features`` the squared error of what each stage returns, in units of the variance of
    the dense model's, mean over the stages; ``both`` their sum; ``auto`` is ``features`` where the model has stages, else ``outputs``:
    few images that a model has memorised say little of its outputs. Where ``features`` do not clearly gain at any learning rate, ``auto``
    is ``both`` if that gains more. ``stages`` are globs over module names; without any they are found, see
    :func:`lrsearch.train.stages.find_stages`.
    ``learning_rate``: of Adam, relative to the size of each parameter, or of SGD with Nesterov momentum 0.9; ``auto`` finds it, see
    :func:`lrsearch.train.range_test.range_test`.
    ``held_out`` is the share of the training data, at most 2,048 examples, that is not trained on: they say which state is the best.
    ``clip`` is the largest gradient norm.
    ``autocast`` is the type that torch's autocast runs the steps in (Micikevicius et al. 2018); weights, losses and the held-out
    examples' judgement stay as they are. ``bfloat16`` is faster where the device has units for it.
    """

    batch: Annotated[int, Field(ge=2, le=MOST)] = 128
    loss: Loss = "auto"
    stages: tuple[str, ...] = ()
    optimizer: Optimizer = "adam"
    learning_rate: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    temperature: Annotated[float, Field(gt=0)] = 1.0
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    clip: Annotated[float, Field(gt=0)] = 5.0
    autocast: Autocast = "none"
    seed: Seed = 0

    @property
    def recipe(self) -> Recipe | None:
        """That which is given; None where the learning rate is to be found."""
        return None if self.learning_rate == "auto" else Recipe(self.loss, self.learning_rate)
