"""From YAML to a validated configuration; what is wrong is told in the words of a study file."""

import difflib
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from lrsearch.errors import ConfigError
from lrsearch.spec.space import Strict

T = TypeVar("T", bound=Strict)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: no such file, not YAML, or not a mapping.
    """
    remedy = "Give the path of a YAML file, or the name of a shipped one."
    try:
        data = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError("the file must be readable", value=error.strerror or "?", place=str(path), remedy=remedy) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError("must be valid YAML", value=str(error), place=str(path), remedy="Mend the line named.") from None
    if not isinstance(data, dict):
        raise ConfigError("must be a mapping of keys", value=type(data).__name__, place=str(path), remedy=remedy)
    return data


def parse(kind: type[T], data: Mapping[str, Any], place: str) -> T:
    """Validate ``data``.

    Raises:
        ConfigError: for the first key that is unknown, missing or wrong.
    """
    try:
        return kind.model_validate(data)
    except ConfigError as error:
        raise ConfigError(error.rule, value=error.value, place=f"{place}: {error.place}", remedy=error.remedy) from None
    except ValidationError as error:
        raise _refusal(kind, error.errors(), place) from None


def _refusal(kind: type[Strict], errors: Sequence[ErrorDetails], place: str) -> ConfigError:
    """Of the first of ``errors``, unknown keys before others."""
    first = min(errors, key=lambda e: e["type"] != "extra_forbidden")
    where, value = f"{place}: {_keys(first)}", first["input"]
    if first["type"] == "extra_forbidden":
        name, known = str(first["loc"][-1]), _siblings(kind, first["loc"])
        near = difflib.get_close_matches(name, known, 1)
        remedy = f"Did you mean {near[0]!r}?" if near else f"Known keys: {', '.join(known)}."
        return ConfigError("unknown key", value=name, place=where, remedy=remedy)
    if first["type"] == "model_type":
        remedy = f"Its keys are {', '.join(_siblings(kind, (*first['loc'], '')))}."
        return ConfigError("must be a mapping of keys", value=value, place=where, remedy=remedy)
    rules = dict.fromkeys(_rule(e) for e in errors if _keys(e) == _keys(first))
    remedy = "Add this key." if first["type"] == "missing" else "Correct this key."
    return ConfigError(", or ".join(rules), value=value, place=where, remedy=remedy)


def _keys(error: ErrorDetails) -> str:
    """Where it is; a union adds a part that is no key, such as "literal['top1']" or "constrained-int"."""
    return ".".join(str(k) for k in error["loc"] if "[" not in str(k) and not str(k).startswith("constrained-")) or "(top)"


def _rule(error: ErrorDetails) -> str:
    """In the words of a study file; what our own validators say stays as it is."""
    if error["type"] == "value_error":
        return error["msg"].removeprefix("Value error, ")
    if error["type"] == "string_pattern_mismatch":
        return "must be a dotted path such as package.module:name"
    words = {"Input should be": "must be", "Field required": "is missing", "Tuple should": "must",
             " after validation": "", "valid tuple": "list", "valid dictionary": "mapping of keys", "a valid string": "text"}
    return reduce(lambda text, word: text.replace(*word), words.items(), error["msg"])


def _siblings(kind: type[Strict], loc: tuple[int | str, ...]) -> list[str]:
    """Keys of the innermost known mapping on the way to ``loc``."""
    for key in loc[:-1]:
        field = kind.model_fields.get(str(key))
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
        kind = next((c for c in candidates if isinstance(c, type) and issubclass(c, Strict)), kind)
    return list(kind.model_fields)
