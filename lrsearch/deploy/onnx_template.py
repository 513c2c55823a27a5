"""Template: a dense model, exported once; models of plans are made of it in milliseconds by exchanging layers."""

import ast
import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lrsearch.deploy.onnx_export import exported
from lrsearch.deploy.onnx_graph import Graph
from lrsearch.deploy.onnx_sums import prune, without_zeros
from lrsearch.task.forward import Inputs

_SCOPES = "pkg.torch.onnx.name_scopes"


class Template:
    """The ONNX graph of a deployed dense model; the exporter notes at every operator which modules it comes from.

    Args:
        model: deployed.
        sample: a batch that it accepts.
    """

    def __init__(self, model: nn.Module, sample: Inputs) -> None:
        import onnx

        self._model = onnx.load_from_string(exported(model, sample))
        self._scopes = [_scopes(node) for node in self._model.graph.node]

    def exchanged(self, layers: Mapping[str, tuple[nn.Module, Tensor]]) -> bytes:
        """The model with other modules in the place of some layers.

        Args:
            layers: layer name → what is there instead, and an input for it.

        Raises:
            KeyError: a layer is not one piece of the graph with one input and one output.
            NeedsExporter: a module cannot be written directly.
        """
        model = copy.deepcopy(self._model)
        nodes: list[Any] = list(model.graph.node)
        pieces = {name: [i for i, scopes in enumerate(self._scopes) if name in scopes] for name in layers}
        added = []
        for number, (name, (module, x)) in enumerate(layers.items()):
            source, target = self._ends(name, pieces[name])
            graph = Graph(f"exchanged_{number}_")
            graph.add(module, source, x)
            graph.nodes[-1].output[0] = target
            nodes[pieces[name][-1]] = graph.nodes
            for i in pieces[name][:-1]:
                nodes[i] = []
            added += graph.tensors
        del model.graph.node[:], model.graph.value_info[:]
        model.graph.node.extend(n for piece in nodes for n in (piece if isinstance(piece, list) else [piece]))
        model.graph.initializer.extend(added)
        prune(without_zeros(model).graph)
        used = {name for node in model.graph.node for name in node.input}
        tensors = [t for t in model.graph.initializer if t.name in used]
        del model.graph.initializer[:]
        model.graph.initializer.extend(tensors)
        data: bytes = model.SerializeToString()
        return data

    def _ends(self, name: str, piece: list[int]) -> tuple[str, str]:
        """The value that a layer's nodes read, and the one that others read of them."""
        graph, constants = self._model.graph, {t.name for t in self._model.graph.initializer}
        made = {output for i in piece for output in graph.node[i].output}
        read = {v for i in piece for v in graph.node[i].input} - made - constants - {""}
        others = {v for i, node in enumerate(graph.node) if i not in piece for v in node.input} | {v.name for v in graph.output}
        if len(read) != 1 or len(made & others) != 1 or piece != list(range(piece[0], piece[-1] + 1)):
            raise KeyError(name)
        return read.pop(), (made & others).pop()


def _scopes(node: Any) -> list[str]:
    """Names of the modules, outermost first, that an operator comes from; they are below the ``model`` of :class:`Flat`."""
    noted = {each.key: each.value for each in node.metadata_props}
    *scopes, _ = ast.literal_eval(noted.get(_SCOPES, "['']"))  # the last one is the operator itself
    return [name.partition("@")[0].removeprefix("model.") for name in scopes if name.startswith("model.")]  # @1 is the second call
