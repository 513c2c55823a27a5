"""A candidate's layers fitted once more, before it is finetuned."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

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
    _importance: dict[str, Tensor] = field(default_factory=dict)  # of layers, which all plans share

    def polished(self, fits: Mapping[str, Decomposition], dense: nn.Module) -> Polished | None:
        """New fits of the same plan; None where that fails, as a finetune does without: the model mixes examples, say, or memory is short.

        A model of the user's may fail in any way where its layers are hooked and its batches are of another size.
        """
        layers, plan = [fit.layer for fit in fits.values()], Plan({name: fit.plan for name, fit in fits.items()})
        try:
            batches = polish_batches(dense, self.examples, self.sizes.size, self.device, CAP_BESIDE_A_SEARCH)
            return polish(dense, layers, plan, batches, self.task, self._importance)
        except Exception as error:
            if not self.told:
                kind = "" if isinstance(error, ModelError) or out_of_memory(error) else f"{type(error).__name__}: "
                self.note(f"finetunes begin without a polish: {kind}{error}")
                self.told = True
            return None
