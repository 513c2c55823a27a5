"""Which kinds of model can be taken: wrappers are opened, and what cannot be compressed is refused in one line."""

import copy
from typing import NoReturn

import torch
from torch import fx, nn
from torch.nn.parameter import is_lazy

from lrsearch.errors import ModelError
from lrsearch.task.forward import named_tensors

_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.ao.nn.sparse.quantized", "torch.nn.quantized")


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside ``torch.compile``, ``DataParallel`` and ``DistributedDataParallel``; else ``model`` itself.

    Where parts of it are compiled, or it was compiled in place, a copy that is not: what is given stays as it is.
    """
    while (inner := _inner(model)) is not None:
        model = inner
    if not any(_inner(m) is not None or _compiled_in_place(m) for m in model.modules()):
        return model
    model = copy.deepcopy(model)  # which drops what compile() in place left
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            while child is not None and (inner := _inner(child)) is not None:
                child = inner
            parent._modules[name] = child
    return model


def _inner(model: nn.Module) -> nn.Module | None:
    if isinstance(model, torch._dynamo.OptimizedModule):
        return model._orig_mod
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inner: nn.Module = model.module
        return inner
    return None


def _compiled_in_place(module: nn.Module) -> bool:
    return getattr(module, "_compiled_call_impl", None) is not None


def refuse_unsupported(model: object) -> None:
    """Check that ``model`` is made of modules with weights that can be read and exchanged.

    Raises:
        ModelError: it is TorchScript, an exported program, quantised or lazy, or no module at all.
    """
    if isinstance(model, torch.export.ExportedProgram) or (isinstance(model, fx.GraphModule) and _exported(model)):
        _refuse("an exported program has operators instead of layers", model, "Bring the model that it was exported from.")
    if not isinstance(model, nn.Module):
        _refuse("the model must be a torch.nn.Module", model, "Bring the module itself, or a function that builds it.")
    for name, module in model.named_modules():
        place = name or type(module).__name__
        if isinstance(module, torch.jit.ScriptModule):
            _refuse("TorchScript cannot be taken apart", module, "Bring the model that it was made of.", place)
        if type(module).__module__.startswith(_QUANTISED) or any(t.is_quantized for t in _own(module)) or _packed(module):
            _refuse("a quantised model has no weights that could be decomposed", module, "Bring the model in floating point.", place)
        if any(is_lazy(t) for t in _own(module)):
            _refuse("lazy modules have no weights yet", module, "Run the model once on a batch before.", place)


def _refuse(rule: str, what: object, remedy: str, place: str = "model") -> NoReturn:
    raise ModelError(rule, value=type(what).__name__, place=place, remedy=remedy)


def _own(module: nn.Module) -> list[torch.Tensor]:
    return [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]


def _packed(module: nn.Module) -> bool:
    """Whether it holds weights as packed parameters, or quantised tensors as attributes."""
    packed = any(isinstance(value, torch.ScriptObject) for value in vars(module).values())
    return packed or any(t.is_quantized for t in named_tensors([v for v in vars(module).values() if isinstance(v, torch.Tensor)]).values())


def _exported(model: fx.GraphModule) -> bool:
    return any(isinstance(node.target, torch._ops.OpOverload) for node in model.graph.nodes)
