"""Study and space files that come with lrsearch, and study files made into configurations."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lrsearch.errors import ConfigError
from lrsearch.spec.config import StudyConfig
from lrsearch.spec.parse import DEEPEST, from_yaml, parse, read_yaml
from lrsearch.spec.registry import load_plugins
from lrsearch.spec.space import Space

_HERE = Path(__file__).parent.parent


def find(kind: str, name: str) -> Path:
    """The file at path ``name``, or the shipped one of that name.

    Args:
        kind: ``"studies"`` or ``"search_spaces"``.

    Raises:
        ConfigError: there is neither.
    """
    if _is_file(Path(name)):
        return Path(name)
    folders = [f for f in (_HERE / kind, _HERE.parent / kind) if f.is_dir()]
    for folder in folders:
        if _is_file(folder / f"{name}.yaml"):
            return folder / f"{name}.yaml"
    known = sorted(p.stem for f in folders for p in f.glob("*.yaml"))
    raise ConfigError(
        "must be a file, or the name of a shipped one", value=name, place=kind.replace("_", " "),
        remedy=f"Shipped: {', '.join(known)}.",
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have: too long, or with NUL
        return False


def load_space(name: str) -> Space:
    """The search space in a YAML file, or a shipped one by name."""
    path = find("search_spaces", name)
    return parse(Space, read_yaml(path), str(path))


def load_study(name: str, overrides: Sequence[str] = ()) -> StudyConfig:
    """A study file, with ``key.key=value`` overrides laid over it (values are YAML). Its ``plugins`` are imported.

    Raises:
        ConfigError: a file or an override is wrong.
    """
    path = find("studies", name)
    return study_of(read_yaml(path), overrides, path.stem, str(path))


def study_of(data: dict[str, Any], overrides: Sequence[str], name: str, place: str) -> StudyConfig:
    """What a study file holds, as :func:`load_study` reads it.

    Args:
        name: of the study, if ``data`` say none.
    """
    lay_over(data, overrides)
    load_plugins(plugin_names(data.get("plugins"), place))
    with_space(data)
    data.setdefault("name", name)
    config = parse(StudyConfig, data, place)
    for key in ("model", "data"):
        if getattr(config, key) is None:
            raise ConfigError("a study file must say it", value="nothing", place=f"{place}: {key}", remedy=f"Add {key}.")
    return config


def with_space(data: dict[str, Any]) -> dict[str, Any]:
    """``data`` with the search space that it names, in place."""
    if isinstance(data.get("space"), str) and data["space"] != "auto":
        data["space"] = load_space(data["space"])
    return data


def plugin_names(value: Any, place: str) -> list[str]:
    """The modules in ``plugins``, a list of names, or one name.

    Raises:
        ConfigError: it is something else.
    """
    names = [value] if isinstance(value, str) else list(value) if isinstance(value, list | tuple) else [] if value is None else [None]
    if not all(isinstance(name, str) for name in names):
        raise ConfigError("must be a list of modules", value=value, place=f"{place}: plugins", remedy="For example plugins: [my_formats].")
    return [str(name) for name in names]


def lay_over(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """``data`` with ``key.key=value`` overrides laid over it, in place.

    Raises:
        ConfigError: an override is wrong.
    """
    for override in overrides:
        _lay_over(data, override)
    return data


def _lay_over(data: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    *path, last = key.split(".")
    if not equals or not last or len(path) >= DEEPEST:
        raise ConfigError("must be key.key=value", value=override, place="--set", remedy="For example search.trials=20.")
    parsed = from_yaml(value, "--set")
    node: Any = data
    for part in path:
        if isinstance(node, dict) and node.get(part) is None:
            node[part] = {}
        node = node[part] if isinstance(node, dict) else None
    if not isinstance(node, dict):
        raise ConfigError("must lead through mappings", value=override, place="--set", remedy="Check the key.")
    node[last] = parsed
