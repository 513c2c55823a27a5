"""Best: the state of a training that held-out examples like best."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lrsearch.compress.fit import Decomposition
from lrsearch.train.student import Student
from lrsearch.train.teacher import Teacher


def typical(divergences: Tensor) -> float:
    """The power mean of exponent ½ of divergences ``(n,)``, ``(E √d)²``: in their unit, and not at the mercy of few examples.

    Images that a model gets wrong lose a hundred times as much as others, so that the mean of 512 is that of a handful. Of ResNet-20 with
    20 % of its parameters such a mean rose by 18 % in a finetune that took the mean of 2,500 other images down by 6 %; this one fell
    (``studies/results/finetune_judge.txt``).
    """
    return float(divergences.double().clamp_min(0).sqrt().mean().square())


class Best:
    """Keeps the values of a student at which it was nearest to the dense model.

    Args:
        student: that is trained.
        teacher: has the held-out examples.
        share: of the divergence in what counts; the rest is the loss on labels, where there are any.

    Attributes:
        loss: the smallest :func:`typical` divergence so far; infinite before :meth:`judge` was called.
        last: the divergence of each example when it was last called, ``(n,)``.
    """

    last: Tensor

    def __init__(self, student: Student, teacher: Teacher, share: float = 1.0) -> None:
        self.student, self.teacher, self.loss = student, teacher, math.inf
        self.share = share if teacher.held_out.has_labels else 1.0
        self._values: dict[str, Any] = {}  # none: those that the student has

    def judge(self) -> bool:
        """Compare the student as it is with the dense model; returns whether it is nearer than ever before. Writes into the model."""
        self.student.write()
        self.last = self.teacher.divergences(self.student.model)
        loss = self.share * typical(self.last)
        if self.share < 1:
            loss += (1 - self.share) * self.teacher.loss_on_labels(self.student.model)
        if better := loss < self.loss:
            self.loss, self._values = loss, {}
        return better

    def keep(self) -> None:
        """To be called before the student changes."""
        self._values = self._values or self.student.values()

    def restore(self) -> None:
        """Go back to the best values."""
        if self._values:
            self.student.load_values(self._values)
            self.student.forget()
            self._values = {}

    def write(self) -> dict[str, Decomposition]:
        """Write the best values into the model, and leave the student as it is; returns copies of the factors."""
        if not self._values:
            return self.student.write()
        present = self.student.values()
        self.student.load_values(self._values)
        found = self.student.write()
        self.student.load_values(present)
        return found

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`load_state_dict` takes."""
        return {"loss": self.loss, "values": self._values}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was called."""
        self.loss, self._values = state["loss"], state["values"]
