"""Examples as one batch, batches in parts, and the bytes of both."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from lrsearch.errors import DataError
from lrsearch.task.examples import FORMS, Labelled, one
from lrsearch.task.forward import Inputs, joined, rows, tensors


def as_index(order: Sequence[int] | Tensor) -> slice | Tensor:
    """``order`` as an index of tensors; a range is a slice, which copies nothing."""
    if isinstance(order, range) and order.step == 1:
        return slice(order.start, order.stop)
    return torch.as_tensor(order, dtype=torch.long)


def taken(batch: Labelled, order: Sequence[int] | Tensor | slice | None) -> Labelled:
    """The examples at ``order``, all if None."""
    if order is None:
        return batch
    index = order if isinstance(order, slice) else as_index(order)
    return rows(batch[0], index), rows(batch[1], index)


def joined_examples(read: Sequence[Labelled]) -> Labelled:
    """Several batches as one."""
    inputs, labels = zip(*read, strict=True)
    return joined(list(inputs)), None if labels[0] is None else joined(list(labels))


def as_batch(read: Sequence[Labelled], place: str) -> Labelled:
    """Examples as one batch.

    Raises:
        DataError: some have a label and others none, or their shapes vary.
    """
    if len({y is None for _, y in read}) > 1:
        raise DataError("all examples must have a label, or none", value="some have", place=place, remedy=FORMS)
    try:
        return joined_examples([(one(x), None if y is None else one(y)) for x, y in read])
    except (RuntimeError, KeyError, ValueError) as error:
        raise DataError(
            "examples that are stacked must have one shape", value=str(error).splitlines()[0], place=place,
            remedy="Resize or crop them, or give a DataLoader that pads each batch.",
        ) from error


def byte_size(inputs: Inputs) -> int:
    """Bytes of all tensors."""
    return sum(t.numel() * t.element_size() for t in tensors(inputs))


def digest(row: Sequence[Tensor]) -> bytes:
    """A hash of the tensors of one example."""
    found = hashlib.blake2b(digest_size=16)
    for tensor in row:
        found.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return found.digest()


def finite(row: Sequence[Tensor]) -> bool:
    """Whether the numbers of one example are neither NaN nor infinite."""
    return all(bool(t.isfinite().all()) for t in row if t.is_floating_point())
