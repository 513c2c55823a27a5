"""The settings of a study, from its folder: all that it has, but for code, which a folder may not name (SECURITY.md)."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lrsearch.errors import ArtifactError, ConfigError
from lrsearch.spec.config import StudyConfig
from lrsearch.spec.parse import parse
from lrsearch.spec.shipped import lay_over, with_space
from lrsearch.study.identity import kept_settings, refuse_other_study
from lrsearch.study.study_folder import StudyFolder
from lrsearch.task.architecture import refuse_unsafe

OWN = frozenset({"lrsearch.examples.digits:model", "lrsearch.examples.digits:data"})  # lrsearch's, harmless with any arguments
_NAMES = ("call", "metric", "task", "sampler", "augment")  # keys whose values may be dotted paths
_REMEDY = "Name the study file once more: --study FILE (from Python study=, or model= with its data)."
_USERS = (  # what a study file, named once more, says anew: all code, and what may change between runs
    ("model",), ("data",), ("task",), ("plugins",), ("device",), ("recover",), ("proxy", "metric"), ("search", "sampler"),
)


def config_alone(folder: Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """The configuration of the study in ``folder``, with ``key.key=value`` overrides, which are the user's own words, laid over it.

    Raises:
        StudyError: the folder holds a damaged study.
        ConfigError: the folder holds no study, or names code, or neither model nor data, or an override is wrong.
    """
    if not StudyFolder(folder).identity.exists():
        remedy = "Check its name; lrsearch search makes one."
        raise ConfigError("the folder must hold a study", value="none", place=str(folder), remedy=remedy)
    kept = kept_settings(StudyFolder(folder))
    said = [override.partition("=")[0] for override in overrides]
    for key, dotted in code_in(kept):
        if dotted not in OWN and not any(f"{key}.".startswith(f"{own}.") for own in said):
            raise ConfigError("a folder may not say which code runs", value=dotted, place=f"{folder}: {key}", remedy=_REMEDY)
    settings = lay_over(kept, overrides)
    if "space" in said:  # a name that the user gave; a folder names no file
        with_space(settings)
    config = parse(StudyConfig, settings, str(folder))
    if config.model is None or config.data is None:
        raise ConfigError("give a study, or a model with its data", value="neither", place=str(folder), remedy=_REMEDY)
    if config.model.timm and "model" not in {own.partition(".")[0] for own in said}:
        try:
            refuse_unsafe(config.model, str(folder))
        except ArtifactError as error:
            raise ConfigError(error.rule, value=error.value, place=error.place, remedy=_REMEDY) from None
    return config


def config_with(folder: Path, named: StudyConfig) -> StudyConfig:
    """The same, with the code that the user's study file names; what else it says is that of the folder.

    Raises:
        StudyError: the folder holds no study, or one of other code.
    """
    kept, own = kept_settings(StudyFolder(folder)), named.model_dump(mode="json")
    for *way, last in _USERS:
        source, target = own, kept
        for key in way:
            source, target = source[key], target[key]
        target[last] = source[last]
    config = parse(StudyConfig, kept, str(folder))
    refuse_other_study(StudyFolder(folder), config)
    return config


def code_in(settings: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, str]]:
    """(key, dotted path) of all code that ``settings`` name."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from code_in(value, f"{place}{key}.")
        elif key in _NAMES and isinstance(value, str) and ":" in value:
            yield f"{place}{key}", value
