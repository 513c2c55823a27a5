"""What users bring as data → examples: inputs, with a label or without.

Accepted are tensors and arrays; pairs (inputs, labels); Datasets and lists of examples; DataLoaders, whose collation is kept; and other
finite iterables of batches. An example is a pair (input, label), an input alone, or a dict whose label, if it has one, is named
``label`` or ``labels``. An input is a tensor, a tuple (positional arguments) or a dict (keyword arguments).
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from lrsearch.errors import DataError
from lrsearch.task.forward import Inputs, examples_in, tensors

LABELS = ("labels", "label", "target", "targets")
FORMS = "Give (inputs, labels): one input as (x, y), two as ((a, b), y), keywords as ({'ids': a, 'mask': b}, y); y may be None."

Labelled = tuple[Inputs, Any]
Data = Any  # see the module's docstring


def as_tensors(value: Any, place: str) -> Any:
    """``value`` with arrays and numbers as tensors; texts and None in a dict are left out.

    Raises:
        DataError: it holds something that is no tensor.
    """
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray | np.generic | bool | int | float):
        return torch.as_tensor(value)
    if isinstance(value, Mapping):
        kept = {str(k): v for k, v in value.items() if v is not None and not isinstance(v, str)}
        return {k: as_tensors(v, f"{place}[{k!r}]") for k, v in kept.items()}
    if isinstance(value, tuple | list):
        return type(value)(as_tensors(v, f"{place}[{i}]") for i, v in enumerate(value))
    raise DataError(
        "inputs and labels must be tensors, arrays or numbers", value=type(value).__name__, place=place,
        remedy="Convert them in the Dataset; images need a transform to tensors, texts a tokeniser.",
    )


def labelled(item: Any, place: str) -> Labelled:
    """An example or a batch → inputs and label; the label is None where there is none.

    Raises:
        DataError: it is none, or ambiguous.
    """
    if isinstance(item, Mapping):
        whole = dict(item)
        key = next((k for k in LABELS if k in whole), None)
        label = whole.pop(key) if key else None
        inputs = as_tensors(whole, place)
        if not tensors(inputs):
            raise DataError("an example must hold a tensor", value=sorted(map(str, item)), place=place, remedy=FORMS)
        return inputs, None if label is None else as_tensors(label, f"{place} label")
    if isinstance(item, tuple | list):
        if len(item) == 1:
            return as_tensors(item[0], place), None
        if len(item) != 2:
            raise DataError("an example must be an input, or a pair of an input and a label", value=f"{len(item)} values", place=place,
                            remedy=FORMS)
        given = dict(item[0]) if isinstance(item[0], Mapping) else item[0]
        label = item[1]
        return as_tensors(tuple(given) if isinstance(given, list) else given, place), None if label is None else as_tensors(label, place)
    return as_tensors(item, place), None


def whole(data: Data, place: str) -> Labelled | None:
    """``data`` as stacked inputs and labels, if it is made of arrays; None if it has to be read example by example.

    Raises:
        DataError: its parts have different lengths, or it is ambiguous.
    """
    if isinstance(data, TensorDataset):
        data = data.tensors if len(data.tensors) < 3 else (data.tensors[:-1], data.tensors[-1])
    if isinstance(data, list) and len(data) == 2 and all(isinstance(t, Tensor | np.ndarray) for t in data):
        if data[0].ndim != data[1].ndim:  # as two examples have not
            return whole(tuple(data), place)
        raise DataError(
            "a list of two tensors of as many axes is ambiguous", value="[tensor, tensor]", place=place,
            remedy="Give (inputs, labels) as a tuple, or two examples as [(x0, y0), (x1, y1)].",
        )
    pair = isinstance(data, tuple) and len(data) == 2 and _stacked(data[0]) and (data[1] is None or _stacked(data[1]))
    if not pair and not (isinstance(data, Tensor | np.ndarray) or (isinstance(data, Mapping) and _stacked(data))):
        return None
    inputs, labels = labelled(data, place)
    lengths = {len(t) for t in (*tensors(inputs), *tensors(labels)) if t.dim()}
    if len(lengths) != 1 or not all(t.dim() for t in tensors(inputs)):
        raise DataError("inputs and labels must have one length", value=sorted(lengths), place=place, remedy=FORMS)
    return inputs, labels


def _stacked(value: Any) -> bool:
    """Whether ``value`` is made of arrays alone."""
    leaves = tree_leaves(_plain(value))
    return bool(leaves) and all(isinstance(t, Tensor | np.ndarray) and t.ndim for t in leaves)


def _plain(value: Any) -> Any:
    """``value`` with every mapping as a dict: torch takes others, such as ``BatchEncoding``, for a leaf."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value


def is_map_style(data: Data) -> bool:
    """Whether examples can be read by their index."""
    return hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, DataLoader | Mapping | str)


def read_batches(data: Data, place: str) -> Iterator[Labelled]:
    """The batches of a DataLoader or of another finite iterable.

    An ``IterableDataset`` gives examples, as torch has it; they are batches of one here.

    Raises:
        DataError: it is no iterable, or a batch cannot be read.
    """
    if not isinstance(data, Iterable) or isinstance(data, str | bytes):
        raise DataError(
            "must be tensors, a Dataset, a DataLoader or another finite iterable of batches", value=type(data).__name__, place=place,
            remedy=FORMS,
        )
    single = isinstance(data, IterableDataset)
    for number, item in enumerate(read_all(data, place)):
        inputs, labels = labelled(item, f"{place}, {'example' if single else 'batch'} {number}")
        if single:
            inputs, labels = one(inputs), None if labels is None else one(labels)
        if labels is not None and {len(t) for t in tensors(labels) if t.dim()} - {examples_in(inputs)}:
            raise DataError("a batch must have a label for each example", value=f"{examples_in(inputs)} inputs", place=place, remedy=FORMS)
        yield inputs, labels


def read_all(data: Iterable[Any], place: str) -> Iterator[Any]:
    """The items of an iterable of the user's.

    Raises:
        DataError: one cannot be read.
    """
    try:
        yield from data
    except Exception as error:
        raise DataError(
            "all data must be readable", value=f"{type(error).__name__}: {error}", place=place, remedy="Mend the data; see --debug.",
        ) from error


def read_example(data: "Dataset[Any]", index: int, place: str) -> Labelled:
    """The example at ``index`` of a map-style data set.

    Raises:
        DataError: it cannot be read, or is no example.
    """
    try:
        item: Any = data[index]
    except Exception as error:
        raise DataError(
            "every example must be readable", value=f"{type(error).__name__}: {error}", place=f"{place}[{index}]", remedy="Mend it.",
        ) from error
    return labelled(item, f"{place}[{index}]")


def one(example: Any) -> Any:
    """An example as a batch of one."""
    if isinstance(example, Tensor):
        return example[None]
    if isinstance(example, dict):
        return {k: one(v) for k, v in example.items()}
    return type(example)(one(v) for v in example)
