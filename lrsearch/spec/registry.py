"""Registry: what a study can name, of this package and of others, each by one class."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib import import_module
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

from lrsearch.errors import ConfigError

T = TypeVar("T")
C = TypeVar("C", bound=type[Any])


@lru_cache
def _installed(group: str, path: tuple[str, ...]) -> EntryPoints:  # noqa: ARG001  another path has other packages
    """The entry points of ``group`` of all packages on ``path``, which is ``sys.path``; reading them takes milliseconds."""
    return entry_points(group=group)


class Registry(Mapping[str, T], Generic[T]):
    """Name → what bears it. A name that is not registered is looked for among the entry points of installed packages.

    Args:
        kind: what is registered, as messages call it, such as ``"format"``.
        group: group of entry points, such as ``"lrsearch.formats"``; each names a class, which is registered as by :meth:`register`.
        base: the class to subclass, as a user imports it.
        register: the decorator, as a user imports it.
        place: where a study file names one.
        builtin: name → module of this package that registers it, imported on first use.
        made: class → what is kept of it; by default the class is called.
        reserved: names that nothing may take.
    """

    def __init__(
        self, kind: str, group: str, *, base: str, register: str, place: str, builtin: Mapping[str, str] | None = None,
        made: Callable[[type[Any]], T] = lambda cls: cls(), reserved: Iterable[str] = (),
    ) -> None:
        self.kind, self.group, self.base, self.decorator, self.place = kind, group, base, register, place
        self._builtin, self._made, self._reserved = dict(builtin or {}), made, frozenset(reserved)
        self._items: dict[str, T] = {}

    def register(self, cls: C) -> C:
        """Class decorator: makes ``cls`` known by its ``name``; nothing else is to be done.

        Raises:
            ValueError: it has no name, or the name is taken by another class.
        """
        name = getattr(cls, "name", None)
        if not isinstance(name, str) or not name:
            raise ValueError(f"a {self.kind} needs a class attribute name: {cls.__qualname__} has {name!r}")
        foreign = self._builtin.get(name, cls.__module__) != cls.__module__
        if name in self._items or name in self._reserved or foreign:
            raise ValueError(f"{self.kind} name {name!r} is taken")
        self._items[name] = self._made(cls)
        return cls

    def __getitem__(self, name: str) -> T:
        """What ``name`` stands for.

        Raises:
            ConfigError: nothing; says how to register it.
        """
        if name not in self._items and name in self._builtin:
            import_module(self._builtin[name])
        if name not in self._items:
            self._load(name)
        if name not in self._items:
            raise ConfigError(f"must be a {self.kind}", value=name, place=self.place, remedy=f"One of {self.known}; {self.own}.")
        return self._items[name]

    def __contains__(self, name: object) -> bool:
        """Whether there is one of that name; those of this package are not imported for it."""
        if not isinstance(name, str):
            return False
        return name in self._items or name in self._builtin or self._load(name)

    def get(self, name: str, default: Any = None) -> Any:
        """What ``name`` stands for, or ``default``."""
        if name not in self:
            return default
        return self[name]

    def __iter__(self) -> Iterator[str]:
        """Those of this package, then what was registered or loaded so far."""
        return iter([*self._builtin, *(name for name in self._items if name not in self._builtin)])

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __delitem__(self, name: str) -> None:
        del self._items[name]

    def load_entry_points(self) -> None:
        """Register all that installed packages declare, for names that only the classes themselves can read."""
        for point in _installed(self.group, tuple(sys.path)):
            self._register(point)

    def _load(self, name: str) -> bool:
        found = [point for point in _installed(self.group, tuple(sys.path)) if point.name == name]
        for point in found:
            self._register(point)
        return name in self._items

    def _register(self, point: EntryPoint) -> None:
        try:
            cls = point.load()  # importing its module may register it
            if getattr(cls, "name", None) not in self._items:
                self.register(cls)
        except Exception as error:
            raise ConfigError(
                f"the entry point of {self.group} must be a {self.kind}", value=f"{point.value} ({type(error).__name__}: {error})",
                place=point.name, remedy=f"Mend or remove the package {point.dist.name if point.dist else '?'}.",
            ) from error

    @property
    def known(self) -> str:
        """The names there are, those of installed packages included."""
        return ", ".join(dict.fromkeys([*self, *(point.name for point in _installed(self.group, tuple(sys.path)))]))

    @property
    def own(self) -> str:
        """How to bring one's own."""
        return f"for your own, subclass {self.base}, decorate it with @{self.decorator} and name its module under plugins"

    def refusal(self, name: str) -> str:
        """Why ``name`` cannot be used; empty if it can. For validators of configurations."""
        return "" if name in self else f"unknown {self.kind} {name!r}; one of {self.known}; {self.own}"


_LOADED: list[str] = []


def load_plugins(names: Iterable[str]) -> None:
    """Import the modules that a study file, a command line or a caller names, so that they register what they bring.

    They run code: never call this with names that were read from an artifact or from a study folder.

    Raises:
        ConfigError: one cannot be imported.
    """
    for name in names:
        try:
            with importable_here():
                import_module(name)
        except Exception as error:
            raise ConfigError(
                "must name a module that can be imported", value=f"{name} ({type(error).__name__}: {error})", place="plugins",
                remedy="Start in the module's folder, or put it on PYTHONPATH.",
            ) from error
        if name not in _LOADED:
            _LOADED.append(name)


def loaded_plugins() -> tuple[str, ...]:
    """The modules that :func:`load_plugins` imported in this process, so that a process started from it can do the same."""
    return tuple(_LOADED)


@contextmanager
def importable_here() -> Iterator[None]:
    """A context in which modules in the working directory can be imported, before others of their name."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        with suppress(ValueError):
            sys.path.remove(here)


def resolve(dotted: str, place: str) -> Callable[..., Any]:
    """The function at ``module:name``, which the user named; never call this with a name out of an artifact or a study folder.

    Raises:
        ConfigError: there is none.
    """
    module, _, name = dotted.partition(":")
    try:
        with importable_here():
            found: Any = import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:
        raise ConfigError(
            "must name an importable function as module:function", value=f"{dotted} ({type(error).__name__}: {error})", place=place,
            remedy="Start in the module's folder, or put it on PYTHONPATH.",
        ) from error
    if not callable(found):
        raise ConfigError("must name a function", value=dotted, place=place, remedy="Name something callable.")
    function: Callable[..., Any] = found
    return function
