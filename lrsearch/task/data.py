"""Examples of one role, in memory where they fit, read again where they do not."""

import inspect
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, Subset

from lrsearch.errors import DataError
from lrsearch.spec.memory import memory_share
from lrsearch.task.examples import FORMS, Data, Labelled, is_map_style, labelled, one, read_all, read_batches, read_example, whole
from lrsearch.task.forward import Inputs, examples_in, joined, moved, moved_while_computing, rows, tensors
from lrsearch.task.stacking import as_batch, as_index, byte_size, digest, finite, joined_examples, taken

RESIDENT_CAP = memory_share(1, 12)  # bytes of the examples that are trained on which are kept on an accelerator
MEMORY_CAP = memory_share(1, 3)  # bytes of one role's examples that are kept in memory
READERS = 2  # processes that read ahead what is not kept in memory
READ_AT_ONCE = 256  # examples of which digests and labels are made at a time


@dataclass(frozen=True)
class Batch:
    """Some examples.

    Attributes:
        inputs: as :func:`lrsearch.task.forward.forward` takes them.
        labels: a tensor, or a tuple or dict of such; None without labels.
    """

    inputs: Inputs
    labels: Any = None

    def __len__(self) -> int:
        return examples_in(self.inputs)

    def to(self, device: torch.device | str) -> "Batch":
        return Batch(moved(self.inputs, device), moved(self.labels, device))

    def to_while_computing(self, device: torch.device | str) -> "Batch":
        """See :func:`lrsearch.task.forward.moved_while_computing`."""
        return Batch(moved_while_computing(self.inputs, device), moved_while_computing(self.labels, device))


class Examples:
    """Examples with their role in messages.

    Where all have the same shapes they are stacked, and any may be drawn. Where shapes vary from batch to batch, whole batches are
    drawn. What is larger than ``MEMORY_CAP`` is read from the user's data set each time.

    Args:
        data: see :mod:`lrsearch.task.examples`.
        role: ``"calibration"``, ``"train"`` or ``"score"``.
        order: indices of the examples to use, all if None.
        model: that they are for: a dict with one unknown key is then fed by position.

    Raises:
        DataError: the data are empty, cannot be read, or do not suit the model.

    Attributes:
        units: how many may be drawn, one by one: examples, or batches where shapes vary.
        random: whether the first example was another when it was read again, as random augmentation makes it.
    """

    _moved: tuple[torch.device, Labelled] | None = None
    _units: Sequence[int] | None = None  # of a part: where each of its units stands in the whole

    def __init__(self, data: Data, role: str, order: Sequence[int] | None = None, model: nn.Module | None = None) -> None:
        self.role, self._model = role, model
        self._stacked: Labelled | None = None
        self._batches: Sequence[Labelled] | Iterable[Labelled] | None = None
        self._items: Any = None
        self.random = False
        self._read(data, order)
        if not len(self):
            raise DataError("must hold at least one example", value="none", place=self.place, remedy=FORMS)

    @property
    def place(self) -> str:
        return f"data.{self.role}"

    def _read(self, data: Data, order: Sequence[int] | None) -> None:
        if (stacked := whole(data, self.place)) is not None:
            self._stacked = self._arranged(taken(stacked, order))
        elif is_map_style(data):
            self._items = data if order is None else Subset(data, list(order))
            self._read_items()
        else:
            self._read_batches(_in_order(data))
            if order is not None:
                self._keep(order)

    def _read_items(self) -> None:
        """Stack the examples of a map-style data set, if they fit and have one shape."""
        if not len(self._items):
            return
        first = self._arranged(read_example(self._items, 0, self.place))
        self.random = digest(tensors(first[0])) != digest(tensors(self._arranged(read_example(self._items, 0, self.place))[0]))
        if len(self._items) * byte_size(first[0]) > MEMORY_CAP:
            return
        read = [self._arranged(read_example(self._items, i, self.place)) for i in range(len(self._items))]
        if len({tuple(t.shape for t in tensors(inputs)) for inputs, _ in read}) == 1:
            self._stacked = as_batch(read, self.place)
        else:
            self._batches = [(one(x), None if y is None else one(y)) for x, y in read]

    def _read_batches(self, data: Data) -> None:
        """Keep the batches of a loader; stack them if they have one shape."""
        read, size = [], 0
        for batch in read_batches(data, self.place):
            read.append(self._arranged(batch))
            size += byte_size(batch[0])
            if size > MEMORY_CAP:
                self._batches = _RereadBatches(data, self.place, self._arranged)
                return
        if len({tuple(t.shape[1:] for t in tensors(inputs)) for inputs, _ in read}) == 1:
            self._stacked = joined_examples(read)
        else:
            self._batches = read

    def _keep(self, order: Sequence[int]) -> None:
        if self._stacked is None:
            raise DataError(
                "a slice needs examples of one shape", value="batches whose shapes vary", place=f"{self.place}.slice",
                remedy="Cut the data before they are batched.",
            )
        self._stacked = taken(self._stacked, order)

    def _arranged(self, batch: Labelled) -> Labelled:
        return (batch[0] if self._model is None else arranged(batch[0], self._model, self.place)), batch[1]

    @cached_property
    def _length(self) -> int:
        if self._stacked is not None:
            return examples_in(self._stacked[0])
        return len(self._items) if self._batches is None else sum(examples_in(x) for x, _ in self._batches)

    def __len__(self) -> int:
        return self._length

    @cached_property
    def units(self) -> int:
        return len(self) if self._batches is None else sum(1 for _ in self._batches)

    def batches(self, size: int, device: torch.device | str = "cpu") -> Iterator[Batch]:
        """All examples in order, ``size`` at a time or, where their shapes vary, as the user batched them, on ``device``."""
        if self._stacked is not None:
            parts: Iterable[Labelled] = (taken(self._stacked, slice(i, i + size)) for i in range(0, len(self), size))
        elif self._batches is None:
            parts = self._streamed(size)
        else:
            parts = self._batches
        streamed = self._stacked is None and self._batches is None and torch.device(device).type == "cuda"
        for inputs, labels in parts:
            batch = Batch(inputs, labels)
            yield batch.to_while_computing(device) if streamed else batch.to(device)

    def at(self, units: Tensor, device: torch.device | str = "cpu") -> Batch:
        """The examples at ``units``; where shapes vary, the single batch there."""
        if self._stacked is not None:
            return Batch(*taken(self._resident(self._stacked, torch.device(device)), units)).to(device)
        if self._batches is None:
            return Batch(*self._gathered(units)).to(device)
        return Batch(*next(islice(self._batches, int(units[0]), None))).to(device)

    def _resident(self, stacked: Labelled, device: torch.device) -> Labelled:
        """``stacked`` on ``device``, kept there from the first draw on, if it is an accelerator and they are few."""
        if device.type == "cpu" or byte_size(stacked[0]) > RESIDENT_CAP:
            return stacked
        if self._moved is None or self._moved[0] != device:
            self._moved = device, (moved(stacked[0], device), moved(stacked[1], device))
        return self._moved[1]

    def _streamed(self, size: int) -> Iterator[Labelled]:
        """The batches of a data set that is too large to keep, read ahead by processes of their own."""
        for items in read_all(DataLoader(self._items, size, collate_fn=list, num_workers=READERS), self.place):
            yield as_batch([self._arranged(labelled(item, self.place)) for item in items], self.place)

    def _gathered(self, units: Tensor) -> Labelled:
        return as_batch([self._arranged(read_example(self._items, i, self.place)) for i in units.tolist()], self.place)

    def draws(self, count: int) -> int:
        """How many units make a batch of ``count`` examples: one, where shapes vary."""
        return min(count, len(self)) if self._batches is None else 1

    def sample(self, count: int = 2) -> Inputs:
        """The inputs of the first ``count`` examples, or of as many as the first batch has."""
        return rows(next(self.batches(count)).inputs, slice(0, count))

    @property
    def has_labels(self) -> bool:
        return next(self.batches(1)).labels is not None

    def labels(self) -> Any:
        """All labels, joined; None without labels."""
        parts = [batch.labels for batch in self.batches(READ_AT_ONCE)]
        return None if parts[0] is None else joined(parts)

    def part(self, units: Sequence[int]) -> "Examples":
        """The examples at ``units``, in that order; batches whose shapes vary, and a loader's, in its own order."""
        made = object.__new__(Examples)
        made.role, made._model, made._stacked, made._batches, made._items = self.role, self._model, None, None, None
        made.random = self.random
        order = units if self._batches is None else sorted(units)
        made._units = order if self._units is None else [self._units[i] for i in order]
        if self._stacked is not None:
            made._stacked = taken(self._stacked, as_index(units))
        elif self._batches is None:
            made._items = Subset(self._items, list(units))
            made._read_items()
        else:
            made._batches = _Chosen(self._batches, units)
        return made

    def digests(self) -> list[bytes]:
        """One hash for each example's inputs, in order; computed once.

        Raises:
            DataError: some are not finite.
        """
        return self._digests

    @cached_property
    def _digests(self) -> list[bytes]:
        found: list[bytes] = []
        for number, batch in enumerate(self.batches(READ_AT_ONCE)):
            for row in zip(*tensors(batch.inputs), strict=True):
                if not finite(row):
                    raise self._not_finite(len(found) if self._batches is None else number)
                found.append(digest(row))
        return found

    def _not_finite(self, unit: int) -> DataError:
        what, whole = "example" if self._batches is None else "batch", unit if self._units is None else self._units[unit]
        return DataError(
            "inputs must be finite", value=f"NaN or infinity in {what} {whole}", place=self.place,
            remedy="Mend or leave it out; a mask may have torch.finfo(dtype).min instead of -inf.",
        )

    def units_without(self, known: Collection[bytes]) -> list[int]:
        """The units none of whose examples has one of the ``known`` digests."""
        if self._batches is None:
            return [i for i, one in enumerate(self.digests()) if one not in known]
        each = (Examples((x, None), self.role).digests() for x, _ in self._batches)
        return [i for i, digests in enumerate(each) if not any(d in known for d in digests)]

    def labelled_digests(self) -> list[bytes]:
        """One hash for each example, its label included, in order."""
        labels: list[Any] = []
        for batch in self.batches(READ_AT_ONCE):
            labels += [[None] * len(batch)] if batch.labels is None else [t.tolist() for t in tensors(batch.labels)[:1]]
        flat = [label for part in labels for label in part]
        return [one + bytes(str(label), "ascii") for one, label in zip(self.digests(), flat, strict=True)]


def arranged(inputs: Inputs, model: nn.Module, place: str) -> Inputs:
    """``inputs`` as ``model`` takes them: a dict with a single key that is none of its arguments is fed by position.

    Raises:
        DataError: some of several keys are none of its arguments.
    """
    if not isinstance(inputs, dict):
        return inputs
    taken = inspect.signature(model.forward).parameters
    unknown = [key for key in inputs if key not in taken]
    if not unknown or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in taken.values()):
        return inputs
    if len(inputs) == 1:
        return inputs[unknown[0]]
    raise DataError(
        f"the model takes {', '.join(taken)}", value=", ".join(unknown), place=place, remedy="Rename or remove these keys.",
    )


def shuffled(length: int, seed: int = 0) -> list[int]:
    """The fixed order in which every source is read, so that slices of one source stay disjoint."""
    return torch.randperm(length, generator=torch.Generator().manual_seed(seed)).tolist()


def _in_order(data: Data) -> Data:
    """A loader that shuffles, in the order of its data set, so that every reading is the same; its collation is kept."""
    if isinstance(data, DataLoader) and isinstance(data.sampler, RandomSampler) and data.batch_size:
        return DataLoader(data.dataset, data.batch_size, collate_fn=data.collate_fn, num_workers=data.num_workers)
    return data


class _Chosen:
    """Some of the batches, in their order; those of a loader are read anew each time."""

    def __init__(self, batches: Iterable[Labelled], units: Collection[int]) -> None:
        self._batches, self._units = batches, frozenset(units)

    def __iter__(self) -> Iterator[Labelled]:
        return (batch for number, batch in enumerate(self._batches) if number in self._units)


class _RereadBatches:
    """The batches of a loader that are too many to keep: read anew each time."""

    def __init__(self, data: Data, place: str, arranged: Any) -> None:
        if iter(data) is data:
            raise DataError(
                "data beyond the memory cap must be read several times", value=type(data).__name__, place=place,
                remedy="Give a DataLoader or a Dataset.",
            )
        self._data, self._place, self._arranged = data, place, arranged

    def __iter__(self) -> Iterator[Labelled]:
        return map(self._arranged, read_batches(self._data, self._place))
