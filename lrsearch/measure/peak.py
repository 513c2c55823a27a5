"""Model → the most memory that its activations take at once."""

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves

from lrsearch.errors import ModelError
from lrsearch.task.forward import Inputs, arguments, inference, output_tensors, tensors


def peak_bytes(model: nn.Module, sample: Inputs) -> int:
    """High-water mark, in bytes, of input, activations and output of one forward pass over ``sample``.

    A tensor lives from the operation that makes it to the last one that reads it or a view of it, as in a
    runtime that frees what is no longer needed, and the inputs as long as the forward pass; operations in
    place take nothing. Weights, and what kernels use inside, are not counted. Python itself takes more where
    a module still has a name for what is no longer needed.

    Args:
        model: any module; left as it was.
        sample: the inputs; their batch is the one that is meant.

    Raises:
        ModelError: the operations depend on the values, so that they cannot be traced.
    """
    nodes = list(traced(model, sample).graph.nodes)
    given = {key for node in nodes if node.op in ("placeholder", "get_attr") for key, _ in _storages(node)}
    sizes: dict[int, int] = {}
    born: dict[int, int] = {}
    last: dict[int, int] = {}
    for at, node in enumerate(nodes):
        sizes |= dict(_storages(node))
        for key, _ in _storages(node):
            born.setdefault(key, at)
        last |= {key: at for read in (node, *node.all_input_nodes) for key, _ in _storages(read)}
    change = [0] * (len(nodes) + 1)
    for key in sizes.keys() - given:
        change[born[key]] += sizes[key]
        change[last[key] + 1] -= sizes[key]
    return sum(t.nbytes for t in tensors(sample)) + max(accumulate(change))


def traced(model: nn.Module, sample: Inputs) -> fx.GraphModule:
    """The operations of one forward pass in eval mode, a function of parameters, buffers and the inputs.

    Raises:
        ModelError: they depend on the values.
    """
    state = {name: t.detach() for name, t in (*model.named_parameters(), *model.named_buffers())}

    def forward(state: dict[str, Tensor], inputs: Inputs) -> Any:
        return list(output_tensors(torch.func.functional_call(model, state, *arguments(inputs))).values())

    try:
        with inference(model), torch.inference_mode(False), torch.no_grad():
            return make_fx(forward, tracing_mode="fake")(state, sample)
    except Exception as error:
        raise ModelError(
            "the operations must not depend on the values", value=f"{type(error).__name__}: {error}", place="peak_bytes",
            remedy="Its peak memory cannot be predicted.",
        ) from error


def _storages(node: fx.Node) -> Iterator[tuple[int, int]]:
    """Identity and size of the memory behind each tensor that ``node`` returns."""
    for value in tree_leaves(node.meta.get("val")):
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            yield storage._cdata, storage.nbytes()
