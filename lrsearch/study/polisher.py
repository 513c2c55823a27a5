"""A candidate's layers fitted once more, before it is finetuned."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from lrsearch.compress.fit import Decomposition
from lrsearch.errors import ModelError
from lrsearch.spec.memory import memory_share
from lrsearch.spec.plan import Plan
from lrsearch.task.base import Task
from lrsearch.task.data import Examples
from lrsearch.task.memory import BatchSize, Note, out_of_memory
from lrsearch.train.polish import Polished, polish, polish_batches

CAP_BESIDE_A_SEARCH = memory_share(1, 4)  # bytes held at once: half of what the command may take, as a search holds its data beside them


@dataclass
class Polisher:
    """Polishes candidates, where that can be done.

    Args:
        examples: that layers are fitted to.
        sizes: how many are run at a time.
        task: of the model.
        device: where to compute.
        note: told, once, that it can't be done.

    Attributes:
        told: whether it was.
    """

    examples: Examples
    sizes: BatchSize
    task: Task
    device: torch.device | str
    note: Note
    told: bool = False

    def polished(self, fits: Mapping[str, Decomposition], dense: nn.Module) -> Polished | None:
        """New fits of the same plan; None where a layer is tied or too wide, the model mixes examples, or memory is exhausted."""
        layers, plan = [fit.layer for fit in fits.values()], Plan({name: fit.plan for name, fit in fits.items()})
        try:
            batches = polish_batches(dense, self.examples, self.sizes.size, self.device, CAP_BESIDE_A_SEARCH)
            return polish(dense, layers, plan, batches, self.task)
        except Exception as error:
            if not (isinstance(error, ModelError) or out_of_memory(error)):
                raise
            if not self.told:
                self.note(f"finetunes begin without a polish: {error}")
                self.told = True
            return None
