"""Names in a study file → models and data sets."""

from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.data import create_transform, resolve_data_config
from torch import nn
from torchvision.datasets import ImageFolder

from lrsearch.errors import DataError, LrsearchError, ModelError
from lrsearch.spec.config import ModelConfig, SourceConfig
from lrsearch.spec.registry import importable_here, resolve
from lrsearch.task.data import Examples, shuffled
from lrsearch.task.examples import Data, is_map_style, whole
from lrsearch.task.forward import examples_in
from lrsearch.task.metrics import UserMetric


def _call(dotted: str, args: dict[str, Any], place: str, error_type: type[LrsearchError]) -> Any:
    function = resolve(dotted, place)
    try:
        with importable_here():  # functions import too
            return function(**args)
    except LrsearchError:
        raise
    except Exception as error:
        raise error_type(
            f"{dotted} must run with the arguments given", value=f"{type(error).__name__}: {error}", place=place,
            remedy="Check its args; --debug shows where it failed.",
        ) from error


def load_metric(name: str) -> UserMetric | None:
    """The user's function at ``name``; None for ``auto`` (the task's own metric) and for ``top1`` (classification's).

    Raises:
        ConfigError: the dotted path leads nowhere.
    """
    return None if name in ("auto", "top1") else resolve(name, "proxy.metric")


def load_base(config: ModelConfig) -> nn.Module:
    """The dense model, in eval mode.

    Raises:
        ConfigError: the dotted path leads nowhere.
        ModelError: the model cannot be built, or its checkpoint does not fit.
    """
    model = _call(config.call, config.args, "model.call", ModelError) if config.call else _timm(config)
    if not isinstance(model, nn.Module):
        raise ModelError("must be an nn.Module", value=type(model).__name__, place="model", remedy="Return the module itself.")
    if config.checkpoint:
        _load_checkpoint(model, config.checkpoint)
    return model.eval()


def _timm(config: ModelConfig) -> nn.Module:
    assert config.timm
    if not timm.is_model(config.timm):
        near = timm.list_models(f"{config.timm[:6]}*")[:5]
        raise ModelError(
            "timm must know the model", value=config.timm, place="model.timm",
            remedy=f"Similar names: {', '.join(near) or 'none'}; timm.list_models() has all.",
        )
    try:
        model: nn.Module = timm.create_model(config.timm, pretrained=config.pretrained, **config.args)
    except Exception as error:
        raise ModelError(
            "timm must be able to build the model", value=f"{type(error).__name__}: {error}", place="model",
            remedy="Check args; without a network, give a local checkpoint instead of pretrained.",
        ) from error
    return model


def _load_checkpoint(model: nn.Module, path: Path) -> None:
    """Load safetensors, or a torch file with ``weights_only=True``; a ``state_dict`` key is looked into."""
    try:
        if path.suffix == ".safetensors":
            state: dict[str, Any] = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
            state = state.get("state_dict", state)
        model.load_state_dict({without_wrapper(k): v for k, v in state.items()})
    except Exception as error:
        raise ModelError(
            "the checkpoint must hold the model's weights", value=f"{type(error).__name__}: {error}", place=str(path),
            remedy="Give a safetensors or weights-only torch file of the same architecture.",
        ) from error


def without_wrapper(name: str) -> str:
    """The name of a tensor without what DataParallel and ``torch.compile`` put before it."""
    for prefix in ("module.", "_orig_mod.", "module."):
        name = name.removeprefix(prefix)
    return name


def load_examples(config: SourceConfig, role: str, model: nn.Module) -> Examples:
    """The data of one role, in the fixed shuffled order, sliced.

    Raises:
        ConfigError: the dotted path leads nowhere.
        DataError: the data cannot be read, or the slice is beyond their end.
    """
    place = f"data.{role}"
    data = _folder(config.folder, model, place) if config.folder else _call(config.call or "", config.args, place, DataError)
    stacked = whole(data, place)
    if stacked is None and not is_map_style(data):
        return _of_loader(data, config, role, model)
    length = examples_in(stacked[0]) if stacked is not None else len(data)
    return Examples(data, role, _sliced(shuffled(length), config, place), model)


def _of_loader(data: Data, config: SourceConfig, role: str, model: nn.Module) -> Examples:
    """The examples of a loader: in its own order, unless a slice is asked for."""
    examples = Examples(data, role, None, model)
    return Examples(data, role, _sliced(shuffled(len(examples)), config, examples.place), model) if config.slice else examples


def _sliced(order: list[int], config: SourceConfig, place: str) -> list[int]:
    if not config.slice:
        return order
    if config.slice[1] > len(order):
        raise DataError(
            f"slice must end within the {len(order)} examples", value=list(config.slice), place=f"{place}.slice",
            remedy=f"End it at {len(order)} or before.",
        )
    return order[slice(*config.slice)]


def _folder(folder: Path, model: nn.Module, place: str) -> Data:
    """A folder of class folders, with the evaluation transform that timm's configuration of the model asks for."""
    data_config = resolve_data_config({}, model=model)
    transform = create_transform(**data_config, is_training=False)
    try:
        return ImageFolder(str(folder), transform)
    except (OSError, RuntimeError) as error:
        raise DataError(
            "must be a folder of class folders with images", value=str(error), place=f"{place}.folder: {folder}",
            remedy="Lay the images out as folder/class/image.jpg.",
        ) from None
