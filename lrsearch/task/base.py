"""Task: what a model is for. Everything that depends on the meaning of its outputs is asked of one."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor, nn

from lrsearch.errors import DataError, ModelError
from lrsearch.task.forward import Inputs, forward, inference
from lrsearch.task.metrics import Metric, UserMetric

SMALL = 64  # values of one example's outputs up to which the divergence's Hessian is computed whole
K = TypeVar("K", bound="Task")
Outputs = Any  # a tensor with a row per example, or a tuple or dict of such


class Task(ABC):
    """The outputs of a model: which count, how far two are apart, and how good they are.

    A task of your own subclasses this, defines :meth:`divergence` and, if it likes, the rest, and is passed as ``task=`` or named in a
    study file as ``task: mymodule:MyTask``.

    Args:
        output: which of several outputs counts: a key, an attribute or an index; the first that counts by its name if None.

    Attributes:
        name: as a study file names it.
        unit: of the divergence.
        metric: the task's own measure of quality; None if there is none.
    """

    name: ClassVar[str]
    unit: ClassVar[str] = ""
    metric: Metric | UserMetric | None = None

    def __init__(self, output: str | int | None = None) -> None:
        self.output = output

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments that make this task, as JSON."""
        return {"output": self.output}

    @property
    def identity(self) -> dict[str, Any]:
        """What tells this task from others, as JSON."""
        return {"name": self.name, **self.settings}

    @property
    def learned(self) -> Any:
        """What :meth:`fitted` found, as JSON; None if that is nothing."""
        return None

    def with_learned(self, learned: Any) -> Self:  # noqa: ARG002
        """The task with what :attr:`learned` of an equal one is."""
        return self

    def run(self, model: nn.Module, inputs: Inputs) -> Outputs:
        """The outputs that count, of one forward pass."""
        return self.outputs(self.picked(forward(model, inputs)), inputs)

    def run_inference(self, model: nn.Module, inputs: Inputs) -> Outputs:
        """:meth:`run` in eval mode without gradients."""
        with inference(model):
            return self.run(model, inputs)

    def measured_by(self, metric: Metric | UserMetric | None) -> Self:
        """The task with another metric: one of lrsearch's, or ``f(outputs, labels) -> float``, higher is better."""
        own = copy_of(self)
        own.metric = metric
        return own

    def picked(self, raw: Any) -> Any:
        """What counts of what a model returned: a tensor, or a tuple of tensors."""
        return pick(raw, self.output)

    def outputs(self, picked: Any, inputs: Inputs) -> Outputs:  # noqa: ARG002
        """``picked`` as :meth:`divergence` takes it; by default in float32 at least."""
        return picked if picked.dtype == torch.float64 else picked.float()

    @abstractmethod
    def divergence(self, outputs: Outputs, reference: Outputs) -> Tensor:
        """How far ``outputs`` are from the dense model's, for each example, ``(n,)``; 0 where they are equal."""

    def loss(self, outputs: Outputs, reference: Outputs, temperature: float) -> Tensor:  # noqa: ARG002
        """What a finetune lowers: a number, by default the mean divergence."""
        return self.divergence(outputs, reference).mean()

    def supervised(self, outputs: Outputs, labels: Any) -> Tensor:  # noqa: ARG002
        """What training on labels lowers: a number.

        Raises:
            DataError: the task knows none.
        """
        raise DataError(
            f"task {self.name} has no loss of its own for labels", value="labels", place="recover.distillation",
            remedy="Set it to 1, or define Task.supervised.",
        )

    def fitted(self, reference: Sequence[Outputs]) -> Self:  # noqa: ARG002
        """The task with what it learns from the dense model's outputs on the calibration data; by default nothing."""
        return self

    def projections(self, outputs: Outputs, temperature: float, generator: torch.Generator) -> Outputs:  # noqa: ARG002
        """Random directions v in the space of the outputs, with E[v vᵀ] the Hessian of the divergence at ``outputs``.

        So ½ E⟨v, Δ⟩² is the divergence that a change Δ of the outputs causes, to second order. By default the Hessian is that of
        :meth:`divergence`, of each example: whole where it has few values, else its diagonal (Hutchinson's estimate).
        """
        return generic_projections(self, outputs, generator)

    def check_labels(self, outputs: Outputs, labels: Any, place: str) -> None:  # noqa: B027  tasks need not
        """Refuse labels that do not suit the ``outputs``.

        Raises:
            DataError: they do not.
        """

    def blind(self, reference: Outputs) -> Outputs | None:  # noqa: ARG002
        """What a model would best return that does not look at its inputs, as ``reference`` in shape; None where that is not known."""
        return None


class Probable(Task):
    """A task whose model returns logits, or ends in what makes them ``probabilities``."""

    def __init__(self, output: str | int | None = None, probabilities: bool = False) -> None:
        super().__init__(output)
        self.probabilities = probabilities

    @property
    def settings(self) -> dict[str, Any]:
        return {**super().settings, "probabilities": self.probabilities}


def copy_of(task: K) -> K:
    """A shallow copy: tasks are not changed once they are made."""
    made = object.__new__(type(task))
    made.__dict__.update(task.__dict__)
    return made


LIKELY = ("logits", "out", "prediction_logits", "last_hidden_state", "pooler_output", "sentence_embedding", "reconstruction")


def pick(raw: Any, output: str | int | None = None) -> Any:
    """What counts of a model's return value: the tensor at ``output``; else the likely one; else all float tensors, as a tuple.

    Raises:
        ModelError: there is none.
    """
    if isinstance(raw, Tensor) and output is None:
        return raw
    named = parts(raw)
    if output is not None:
        for part in str(output).split("."):
            named = parts(raw)
            if part not in named:
                raise ModelError(
                    "output must name one of the model's outputs", value=output, place="output",
                    remedy=f"The model returns {', '.join(named) or type(raw).__name__}.",
                )
            raw = named[part]
        return raw if isinstance(raw, Tensor) else pick(raw)
    if key := next((k for k in LIKELY if isinstance(named.get(k), Tensor)), None):
        return named[key]
    found = tuple(t for t in named.values() if isinstance(t, Tensor) and t.is_floating_point() and t.dim())
    if not found:
        raise ModelError(
            "the model must return tensors", value=f"{type(raw).__name__} of {', '.join(named) or 'nothing'}", place="output",
            remedy="Name the output that counts, as output: NAME, or wrap the model so that it returns it.",
        )
    return found[0] if len(found) == 1 else found


def parts(raw: Any) -> Mapping[str, Any]:
    """The parts of a dict, a dataclass, an object with fields, or a tuple, by name or number."""
    if isinstance(raw, Mapping):
        return {str(k): v for k, v in raw.items()}
    if is_dataclass(raw):
        return vars(raw)
    if hasattr(raw, "_fields"):
        return dict(zip(raw._fields, raw, strict=True))
    return {str(i): v for i, v in enumerate(raw)} if isinstance(raw, tuple | list) else {}


def generic_projections(task: Task, outputs: Outputs, generator: torch.Generator) -> Outputs:
    """See :meth:`Task.projections`; of tasks whose outputs are one tensor.

    Raises:
        ModelError: they are not.
    """
    if not isinstance(outputs, Tensor):
        raise ModelError(
            "a task with several outputs must define projections", value=type(outputs).__name__, place=f"task {task.name}",
            remedy="Override Task.projections.",
        )
    x = outputs.detach().clone().requires_grad_()
    with torch.enable_grad():
        slope = torch.autograd.grad(task.divergence(x, outputs.detach()).sum(), x, create_graph=True)[0]
    values = outputs[0].numel()
    if values <= SMALL:
        units = torch.eye(values, device=x.device).view(values, 1, *x.shape[1:]).expand(values, *x.shape)
        hessian = torch.stack([_product(slope, x, u).flatten(1) for u in units], 1)
        found, vectors = torch.linalg.eigh(hessian)
        noise = torch.randn(found.shape, generator=generator).to(x) * found.clamp_min(0).sqrt()
        return (vectors @ noise[..., None])[..., 0].view_as(outputs)
    signs, again = ((2 * torch.randint(2, x.shape, generator=generator) - 1).to(x) for _ in range(2))
    return (signs * _product(slope, x, signs)).clamp_min(0).sqrt() * again


def _product(slope: Tensor, x: Tensor, direction: Tensor) -> Tensor:
    """The Hessian of each example's divergence times ``direction``, of the gradient ``slope`` at ``x``."""
    return torch.autograd.grad(slope, x, direction.to(slope), retain_graph=True)[0].detach()
