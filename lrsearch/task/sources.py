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
from lrsearch.spec.registry import resolve
from lrsearch.task.data import Examples, Labelled, as_dataset, shuffled
from lrsearch.task.scoring import Metric, top1


def _call(dotted: str, args: dict[str, Any], place: str, error_type: type[LrsearchError]) -> Any:
    function = resolve(dotted, place)
    try:
        return function(**args)
    except LrsearchError:
        raise
    except Exception as error:
        raise error_type(
            f"{dotted} must run with the arguments given", value=f"{type(error).__name__}: {error}", place=place,
            remedy="Check its args; --debug shows where it failed.",
        ) from error


def load_metric(name: str) -> Metric:
    """``top1``, or the user's function at ``name``.

    Raises:
        ConfigError: the dotted path leads nowhere.
    """
    return top1 if name == "top1" else resolve(name, "proxy.metric")


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
        model.load_state_dict({k.removeprefix("module."): v for k, v in state.items()})
    except Exception as error:
        raise ModelError(
            "the checkpoint must hold the model's weights", value=f"{type(error).__name__}: {error}", place=str(path),
            remedy="Give a safetensors or weights-only torch file of the same architecture.",
        ) from error


def load_examples(config: SourceConfig, role: str, model: nn.Module) -> Examples:
    """The data of one role, in the fixed shuffled order, sliced.

    Raises:
        ConfigError: the dotted path leads nowhere.
        DataError: the data cannot be read, or the slice is beyond their end.
    """
    place = f"data.{role}"
    found = _folder(config.folder, model, place) if config.folder else _call(config.call or "", config.args, place, DataError)
    dataset = as_dataset(found, role)
    order = shuffled(len(dataset))  # type: ignore[arg-type]
    if config.slice:
        if config.slice[1] > len(order):
            raise DataError(
                f"slice must end within the {len(order)} examples", value=list(config.slice), place=f"{place}.slice",
                remedy=f"End it at {len(order)} or before.",
            )
        order = order[slice(*config.slice)]
    return Examples(dataset, role, order)


def _folder(folder: Path, model: nn.Module, place: str) -> Labelled:
    """A folder of class folders, with the evaluation transform that timm's configuration of the model asks for."""
    data_config = resolve_data_config({}, model=model)
    transform = create_transform(**data_config, is_training=False)
    try:
        images: Labelled = ImageFolder(str(folder), transform)
        return images
    except (OSError, RuntimeError) as error:
        raise DataError(
            "must be a folder of class folders with images", value=str(error), place=f"{place}.folder: {folder}",
            remedy="Lay the images out as folder/class/image.jpg.",
        ) from None
