"""Examples: labelled inputs in memory where they fit, streamed where they do not."""

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from lrsearch.errors import DataError

MEMORY_CAP = 4 * 2**30
Labelled = Dataset[tuple[Tensor, Tensor]]


class Examples:
    """A data set of (input, label) pairs, with its role in messages.

    Args:
        dataset: a map-style Dataset of (input, label), or a pair of tensors.
        role: ``"calibration"``, ``"train"`` or ``"score"``.
        order: indices to use, all if None.

    Raises:
        DataError: the data are empty or not such pairs.
    """

    def __init__(self, dataset: Labelled | tuple[Tensor, Tensor], role: str, order: Sequence[int] | None = None) -> None:
        self.role = role
        data = as_dataset(dataset, role)
        self.data = data if order is None else Subset(data, order)
        x, _ = _pair(self.data, 0, role)
        self.tensors: tuple[Tensor, Tensor] | None = None
        if len(self) * x.numel() * x.element_size() <= MEMORY_CAP:
            self.tensors = _stacked(self.data, role)

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]

    def batches(self, size: int, device: torch.device | str = "cpu") -> Iterator[tuple[Tensor, Tensor]]:
        """(inputs, labels) in order, ``size`` at a time, on ``device``."""
        if self.tensors is not None:
            parts: Iterator[tuple[Tensor, Tensor]] = zip(*(torch.split(t, size) for t in self.tensors), strict=True)
        else:
            parts = iter(DataLoader(self.data, batch_size=size))
        for x, y in parts:
            yield x.to(device), y.to(device)

    def take(self, indices: Tensor) -> Tensor:
        """The inputs at ``indices``, stacked."""
        return self.pairs(indices)[0]

    def pairs(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The inputs and the labels at ``indices``, stacked."""
        if self.tensors is not None:
            return self.tensors[0][indices], self.tensors[1][indices]
        x, y = zip(*(_pair(self.data, i, self.role) for i in indices.tolist()), strict=True)
        return torch.stack(x), torch.stack(y)

    def labels(self) -> Tensor:
        return self.tensors[1] if self.tensors is not None else torch.cat([y for _, y in self.batches(256)])

    def part(self, indices: Sequence[int]) -> "Examples":
        """The examples at ``indices``, in that order."""
        return Examples(self.data if self.tensors is None else self.tensors, self.role, indices)

    def digests(self) -> list[bytes]:
        """One hash per input, in order; computed once."""
        return self._digests

    @cached_property
    def _digests(self) -> list[bytes]:
        rows = (row for x, _ in self.batches(256) for row in x)
        return [hashlib.blake2b(r.contiguous().view(torch.uint8).numpy().tobytes(), digest_size=16).digest() for r in rows]


def shuffled(length: int, seed: int = 0) -> list[int]:
    """The fixed order in which every source is read, so that slices of one source stay disjoint."""
    return torch.randperm(length, generator=torch.Generator().manual_seed(seed)).tolist()


def refuse_overlap(scoring: Examples, *others: Examples) -> dict[str, str]:
    """Check that no input of ``scoring`` is in another set: a score would be of what was fitted or trained on.

    Returns:
        role → fingerprint of that set's examples, whatever their order.

    Raises:
        DataError: some are.
    """
    hashes = {s.role: s.digests() for s in (scoring, *others)}
    for other in others:
        if shared := len(set(hashes[scoring.role]) & set(hashes[other.role])):
            raise DataError(
                "score data must not be in another set", value=f"{shared} inputs in both",
                place=f"data.{other.role} and data.{scoring.role}",
                remedy="Take disjoint slices, for example slice: [0, 1000] and [1000, 30000].",
            )
    labels = {s.role: s.labels().tolist() for s in (scoring, *others)}
    labelled = {role: sorted(h + bytes(str(y), "ascii") for h, y in zip(hashes[role], labels[role], strict=True)) for role in hashes}
    return {role: hashlib.sha256(b"".join(lines)).hexdigest()[:16] for role, lines in labelled.items()}


def as_dataset(dataset: object, role: str) -> Labelled:
    """``dataset`` itself, or a pair of tensors as a TensorDataset.

    Raises:
        DataError: it is neither, or empty.
    """
    parts = list(dataset) if isinstance(dataset, tuple | list) and len(dataset) == 2 else []
    pair = any(isinstance(part, Tensor | Dataset) for part in parts)
    if pair and all(isinstance(t, Tensor) for t in parts) and len(parts[0]) == len(parts[1]) > 0:
        return TensorDataset(*parts)  # type: ignore[return-value]
    if not pair and hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__") and len(dataset):
        return dataset  # type: ignore[return-value]
    raise DataError(
        "must be a non-empty Dataset with a length, or a pair of tensors of one length", value=type(dataset).__name__,
        place=f"data.{role}", remedy="Return a torch Dataset of (input, label) pairs.",
    )


def _pair(data: Labelled, index: int, role: str) -> tuple[Tensor, Tensor]:
    try:
        item: object = data[index]
    except Exception as error:
        raise DataError(
            "every example must be readable", value=f"{type(error).__name__}: {error}", place=f"data.{role}[{index}]",
            remedy="Mend or remove it.",
        ) from error
    if isinstance(item, tuple | list) and len(item) == 2 and isinstance(item[0], Tensor):
        return item[0], torch.as_tensor(item[1])
    raise DataError(
        "each example must be a pair of a tensor and a label", value=type(item).__name__, place=f"data.{role}[{index}]",
        remedy="Return (input, label) from the Dataset; images need a transform to tensors.",
    )


def _stacked(data: Labelled, role: str) -> tuple[Tensor, Tensor]:
    source = data.dataset if isinstance(data, Subset) else data
    if isinstance(source, TensorDataset) and len(source.tensors) == 2:
        x, y = source.tensors
        return (x[list(data.indices)], y[list(data.indices)]) if isinstance(data, Subset) else (x, y)
    pairs = [_pair(data, i, role) for i in range(len(data))]  # type: ignore[arg-type]
    if len({x.shape for x, _ in pairs}) > 1:
        raise DataError(
            "all inputs must have one shape", value=sorted({tuple(x.shape) for x, _ in pairs})[:3],
            place=f"data.{role}", remedy="Resize or crop in the transform.",
        )
    return torch.stack([x for x, _ in pairs]), torch.stack([y for _, y in pairs])
