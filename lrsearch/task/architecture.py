"""Architecture: the model that an artifact names, where that is code of an installed package; a folder may name no other code."""

import re
from typing import Any

import timm
from torch import nn

from lrsearch.errors import ArtifactError, ModelError
from lrsearch.spec.config import ModelConfig
from lrsearch.task.sources import load_base

NEEDS_BASE = "Pass base=, a dense model of the same architecture."  # what to do where a folder cannot say how its model is built
_WORD = re.compile(r"[\w.-]{1,64}")  # names of layers and options; neither a path nor an address
_LOADS = re.compile(r"pretrained.*|.*checkpoint.*|.*_(dir|file|url|path)")  # arguments by which timm reads files
_RATE = "drop_path"  # timm's stochastic depth, no path


def build_architecture(config: ModelConfig, place: str) -> nn.Module:
    """The timm model that a file in a folder names, in eval mode, with random values: no file is read, nothing is downloaded.

    Args:
        config: as the file has it; its checkpoint and ``pretrained`` are left out.
        place: the file.

    Raises:
        ArtifactError: it is a dotted path, or an argument is more than a setting, or timm cannot build it.
    """
    refuse_unsafe(config, place)
    try:
        return load_base(config.model_copy(update={"pretrained": False, "checkpoint": None}))
    except ModelError as error:
        raise _refusal(error.rule, error.value, f"{place}: {error.place}") from error


def refuse_unsafe(config: ModelConfig, place: str) -> None:
    """Check that what a folder names is a model of timm with plain settings.

    Raises:
        ArtifactError: it is a dotted path, or an argument is more than a setting.
    """
    if config.timm is None:
        raise refused_code(str(config.call), place)
    if not (_WORD.fullmatch(config.timm) and timm.is_model(config.timm)):
        raise _refusal("must name a model of timm", config.timm, f"{place}: model.timm")
    for key, value in config.args.items():
        if not _is_setting(key, value):
            rule = "only plain settings may come from a folder: no files, no pretrained values"
            raise _refusal(rule, value, f"{place}: model.args.{key}")


def refused_code(dotted: str, place: str) -> ArtifactError:
    """That a file in a folder names code."""
    return _refusal("a folder may not say which code runs", dotted, f"{place}: model.call")


def _is_setting(key: str, value: Any) -> bool:
    return bool(_WORD.fullmatch(key)) and (key == _RATE or not _LOADS.fullmatch(key)) and _is_plain(value)


def _is_plain(value: Any) -> bool:
    """A number, a word, a boolean, nothing, or a list of those."""
    if isinstance(value, list | tuple):
        return all(_is_plain(v) for v in value)
    return value is None or isinstance(value, bool | int | float) or (isinstance(value, str) and bool(_WORD.fullmatch(value)))


def _refusal(rule: str, value: Any, place: str) -> ArtifactError:
    return ArtifactError(rule, value=value, place=place, remedy=NEEDS_BASE)
