"""How much a network's output depends on each output of its layers: fits are to be best where that is much."""

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import Tensor, nn

from lrsearch.compress.fit import DAMPING
from lrsearch.profile.statistics import STATISTICS_CAP, collect, groups
from lrsearch.spec.layer import LayerSpec
from lrsearch.task.base import Task
from lrsearch.task.forward import Inputs, examples_in, rows

EVEN = 0.5  # share of the importance that all outputs get alike
EXAMPLES = 64  # each makes one sketch


def importance(gram: Tensor, sketches: Tensor) -> Tensor:
    """``(groups, rows, 1)``, of mean 1: how much the network's output depends on each output of a layer.

    The diagonal of K-FAC's second factor (Martens & Grosse 2015), from the sketches: the energy of a row's
    gradient where every input has unit energy. Every sketch counts the same, as a few examples that the model is
    unsure of would else decide alone; and as there are not many, the shares are drawn to equal ones by ``EVEN``.

    Args:
        gram: of the layer's inputs, ``(groups, columns, columns)`` or in blocks.
        sketches: ``(k, groups, rows, columns)``, in any unit; see :class:`~lrsearch.profile.sketches.Sketches`.
    """
    energy = gram.diagonal(dim1=1, dim2=2).reshape(sketches.shape[1], 1, sketches.shape[3])
    energy = energy + DAMPING * energy.mean().clamp_min(1e-30)
    total = energy.new_zeros(*sketches.shape[1:3], 1)
    for sketch in sketches:
        rows = (sketch.to(energy).square() / energy).sum(-1, keepdim=True)
        total += rows / rows.sum().clamp_min(1e-30)
    return EVEN + (1 - EVEN) * total / total.mean() if bool(total.any()) else total + 1


def importances(
    model: nn.Module, layers: Iterable[LayerSpec], batches: Sequence[Inputs], task: Task | None = None,
) -> dict[str, Tensor]:
    """Layer name → :func:`importance`, from at most ``EXAMPLES`` examples of ``batches``; ``model`` is left as it was.

    As many layers at a time as memory has room for: the sketches of ViT-B take 11 GB.
    """
    examples = [rows(x, slice(i, i + 1)) for x in batches for i in range(examples_in(x))]
    few, found = examples[:: -(-len(examples) // EXAMPLES)], dict[str, Tensor]()
    for some in groups(list(layers), EXAMPLES, STATISTICS_CAP, 0):
        with tempfile.TemporaryDirectory() as folder:  # for a layer that alone is too large
            of_layers = collect(model, some, [], few, Path(folder), task=task)
            for spec in some:
                one = of_layers[spec.name]
                found[spec.name] = importance(one.check, one.sketches)
    return found
