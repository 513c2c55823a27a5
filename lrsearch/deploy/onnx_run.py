"""An ONNX model as a module, so that it is scored as any other."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lrsearch.deploy.onnx_export import arrays
from lrsearch.errors import ArtifactError
from lrsearch.task.forward import copied, examples_in, forward, inference, joined, output_tensors, rows


class OnnxModel(nn.Module):
    """What ONNX Runtime's ``session`` computes, returned as ``like`` returns it: a tensor, a tuple of tensors, or a mapping.

    A model for batches of a fixed size takes any: the last one is filled up with its first examples.

    Args:
        session: of a model that :func:`lrsearch.deploy.onnx_export.exported` made of ``like``.
        like: the model in torch; it is run once.
    """

    def __init__(self, session: Any, like: nn.Module) -> None:
        super().__init__()
        self._session, self._like = session, [like]  # in a list: it is no part of this one
        self._names: list[str] | None = None
        sizes = [each.shape[0] for each in session.get_inputs() if each.shape and isinstance(each.shape[0], int)]
        self._size = sizes[0] if sizes else None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        inputs: Any = kwargs or (args[0] if len(args) == 1 else args)
        if self._names is None:
            self._learn(inputs)
        count = examples_in(inputs)
        size = self._size or count
        parts = [self._run(rows(inputs, slice(i, i + size)), size) for i in range(0, count, size)]
        return self._shaped(rows(joined(parts), slice(0, count)))

    def _learn(self, inputs: Any) -> None:
        with inference(self._like[0]) as like:
            raw = forward(like, inputs)
        self._names, self._kind = list(output_tensors(raw)), _kind(raw)

    def _run(self, inputs: Any, size: int) -> dict[str, Tensor]:
        if (count := examples_in(inputs)) < size:
            inputs = rows(joined([inputs] * -(-size // count)), slice(0, size))
        given = dict(zip((each.name for each in self._session.get_inputs()), arrays(copied(inputs)).values(), strict=True))
        assert self._names is not None
        return {name: torch.from_numpy(value) for name, value in zip(self._names, self._session.run(None, given), strict=True)}

    def _shaped(self, outputs: Mapping[str, Tensor]) -> Any:
        if self._kind is Tensor:
            return outputs["output"]
        return tuple(outputs.values()) if self._kind is tuple else dict(outputs)


def _kind(raw: Any) -> type:
    if isinstance(raw, Tensor):
        return Tensor
    plain = isinstance(raw, tuple | list) and not hasattr(raw, "_fields")
    parts: Sequence[Any] = list(raw) if plain else list(raw.values()) if isinstance(raw, Mapping) else list(vars(raw).values())
    if not all(isinstance(part, Tensor) or part is None for part in parts):
        raise ArtifactError(
            "a model whose outputs are nested is not scored in ONNX", value=type(raw).__name__, place="model.onnx",
            remedy="Wrap it so that it returns tensors.",
        )
    return tuple if plain else dict
