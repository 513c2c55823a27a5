"""From YAML to a validated configuration; what is wrong is told in the words of a study file."""

import difflib
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from yaml.constructor import ConstructorError

from lrsearch.errors import ConfigError
from lrsearch.spec.space import Strict

T = TypeVar("T", bound=Strict)
LARGEST = 2**20  # bytes of a study file; the largest shipped one has 2 kB
DEEPEST = 50  # levels of nesting; a study file of all keys has 6
MOST_VALUES = 100_000  # in a file, aliases counted each time


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: no such file, not YAML, or not a mapping.
    """
    remedy = "Give the path of a YAML file, or the name of a shipped one."
    try:
        if (size := path.stat().st_size) > LARGEST:
            raise ConfigError(f"must be a file of at most {LARGEST} bytes", value=f"{size} bytes", place=str(path), remedy=remedy)
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError("the file must be readable", value=error.strerror or "?", place=str(path), remedy=remedy) from None
    except UnicodeDecodeError as error:
        raise ConfigError("must be valid YAML", value=str(error), place=str(path), remedy="Save it as UTF-8.") from None
    data = from_yaml(text, str(path))
    if not isinstance(data, dict):
        raise ConfigError("must be a mapping of keys", value=type(data).__name__, place=str(path), remedy=remedy)
    return data


def from_yaml(text: str, place: str) -> Any:
    """What YAML says: no key twice, nothing nested deeply, nothing that grows by aliases.

    Raises:
        ConfigError: it is none, or one of these.
    """
    try:
        data = yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError("must be valid YAML", value=str(error), place=place, remedy="Mend the line named.") from None
    _refuse_vast(data, place)
    return data


class _Loader(yaml.SafeLoader):
    """Says of what no study file needs in which line it is."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if self.depth > DEEPEST:
            raise ConstructorError(None, None, f"nested deeper than {DEEPEST} levels", self.get_mark())
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise ConstructorError(None, None, f"the key {key.value!r} stands twice", key.start_mark)
                seen.add(key.value)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, OverflowError) as error:  # such as the date 2020-13-45, and integers of 5,000 digits
            raise ConstructorError(None, None, str(error), node.start_mark) from None


def _refuse_vast(data: Any, place: str) -> None:
    """Aliases of aliases multiply, and one of what it is in never ends."""
    left, count = [data], 0
    while left:
        count += 1
        if count > MOST_VALUES:
            raise ConfigError(f"must have at most {MOST_VALUES} values", value="more", place=place, remedy="Use fewer aliases.")
        node = left.pop()
        left += node.values() if isinstance(node, dict) else node if isinstance(node, list | set | tuple) else ()


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
