"""Stages: the parts of a network whose outputs a finetune compares with the dense model's."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from lrsearch.errors import ConfigError
from lrsearch.task.forward import Inputs, forward, inference, named_tensors

TINY = 1e-12  # of a variance: what varies less is constant
LEAST = 3  # stages; networks have 3 to 7 between changes of resolution, and those with fewer parts at the top are split further


def find_stages(model: nn.Module, sample: Inputs) -> tuple[str, ...]:
    """The names of the outermost parts of ``model`` that have several weights each, split until there are three or no smaller ones.

    So they are the stages of a ResNet, the blocks of a transformer, and the parts of an encoder and a decoder. Of a plain chain of layers
    they are the layers, all but the last, which makes the output. Parts whose ``forward`` does not run, such as ``nn.ModuleList``,
    stand for what is in them.

    Args:
        model: any module.
        sample: inputs for one forward pass.

    Returns:
        Names in the order of the model's modules; empty where there is nothing between input and output.
    """
    tree = _Tree(model, sample)
    found = tree.split("")
    while len(found) < LEAST and (finer := [part for name in found for part in tree.split(name) or [name]]) != found:
        found = finer
    return tuple(found or tree.chain())


def named_stages(model: nn.Module, globs: Sequence[str]) -> tuple[str, ...]:
    """The modules that match one of ``globs``.

    Raises:
        ConfigError: a glob matches none.
    """
    names = [name for name, _ in model.named_modules() if name]
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            raise ConfigError(
                "every stage must match a module", value=glob, place="stages", remedy=f"The model has {', '.join(names[:6])}, ….",
            )
    return tuple(name for name in names if any(fnmatchcase(name, glob) for glob in globs))


class _Tree:
    """The modules of a model that return float tensors in a forward pass, and how many weights are in each."""

    def __init__(self, model: nn.Module, sample: Inputs) -> None:
        self.model, self.names = model, [name for name, _ in model.named_modules() if name]
        with inference(model), Features(model, self.names) as seen:
            forward(model, sample)
            self.ran = {name for name, tensors in seen.taken().items() if tensors and all(bool(t.isfinite().all()) for t in tensors)}
        owners = [name.split(".")[:-1] for name, p in model.named_parameters() if p.dim() > 1]
        self.weights = Counter(".".join(owner[:depth]) for owner in owners for depth in range(1, len(owner) + 1))

    def split(self, name: str) -> list[str]:
        """The outermost parts below ``name`` that have several weights; of a single one, its own."""
        parts = [part for part in self._below(name) if self.weights[part] > 1]
        return self.split(parts[0]) or parts if len(parts) == 1 else parts

    def _below(self, name: str) -> list[str]:
        prefix = f"{name}." if name else ""
        own = [f"{prefix}{child}" for child, _ in self.model.get_submodule(name).named_children()]
        return [part for child in own if self.weights[child] for part in ([child] if child in self.ran else self._below(child))]

    def chain(self) -> list[str]:
        """The layers with weights, but the last."""
        leaves = [n for n in self.names if n in self.ran and self.weights[n] and not any(o.startswith(f"{n}.") for o in self.names)]
        return leaves[:-1]


class Features:
    """Records what modules return while a model runs: all float tensors, of every call.

    Args:
        model: that runs.
        names: of the modules.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self.model, self.names = model, names
        self._found: dict[str, list[Tensor]] = {}

    def taken(self) -> Mapping[str, list[Tensor]]:
        """Name → tensors, recorded since this was last called."""
        found, self._found = self._found, {}
        return found

    def __enter__(self) -> "Features":
        self._hooks = [self.model.get_submodule(name).register_forward_hook(self._recorder(name)) for name in self.names]
        return self

    def _recorder(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def record(_module: nn.Module, _inputs: Any, output: Any) -> None:
            floats = [t for t in named_tensors(output).values() if t.is_floating_point() and t.dim()]
            self._found.setdefault(name, []).extend(floats)

        return record

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for hook in self._hooks:
            hook.remove()
        self._found = {}


def feature_loss(found: Mapping[str, Sequence[Tensor]], wanted: Mapping[str, Sequence[Tensor]]) -> Tensor:
    """The mean over stages and their tensors of the squared error in units of the variance of the tensor that is ``wanted``.

    A tensor that is constant, or of another shape, does not count. The features are those of FitNets (Romero et al. 2015), the
    normalisation makes stages equal whatever their scale.

    Raises:
        ConfigError: nothing counts.
    """
    pairs = [(a.float(), b.float()) for name, tensors in wanted.items() for a, b in zip(found.get(name, ()), tensors, strict=False)]
    parts = [_error(a, b) for a, b in pairs if a.shape == b.shape]
    if not parts:
        raise ConfigError(
            "stages must return float tensors", value=", ".join(wanted) or "no stages", place="loss",
            remedy="Name others in stages, or take loss: outputs.",
        )
    return torch.stack(parts).mean()



def _error(a: Tensor, b: Tensor) -> Tensor:
    variance = b.var(correction=0)
    return (a - b).square().mean() * (variance > TINY) / variance.clamp_min(TINY)
