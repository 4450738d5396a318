"""The registry of methods: fedquilt's own, those that a program registers, and those of installed packages.

A package offers methods in the entry point group ``fedquilt.methods``: the entry point has the method's name, and its
object is an ``Entry``, or only a factory, whose traits are then ``Traits()``. Names are read when a method is first
looked up; a module or package is imported when its own method is looked up.
"""

from __future__ import annotations

import ast
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from fedquilt.core.errors import ConfigError, suggestion
from fedquilt.methods.traits import GivenTraits, Traits

if TYPE_CHECKING:
    from fedquilt.core.method import Method

GROUP = "fedquilt.methods"
"""The entry point group in which installed packages offer methods."""

Factory = Callable[..., "Method"]
"""``factory(federation, *, settings...) -> Method``; its keyword-only arguments are the keys of ``[method]``."""


class Entry(NamedTuple):
    """A registered method.

    Attributes
    ----------
    factory : makes it.
    traits : its traits, a value or a function of all settings.
    suited : defaults of its settings that follow from the kind of adapter, by kind, where they are not the factory's.
    without_proxy : defaults of its settings where the server holds no rows, likewise.
    """

    factory: Factory
    traits: GivenTraits = Traits()
    suited: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
    without_proxy: Mapping[str, Any] = MappingProxyType({})


class Own(NamedTuple):
    """A method of fedquilt's own, whose module is imported when it is looked up.

    Attributes
    ----------
    module : the name of its module in ``fedquilt.methods``.
    factory : the name of its factory there; that of the module if empty.
    traits : the name of its traits there.
    suited, without_proxy : as in ``Entry``.
    """

    module: str
    factory: str = ""
    traits: str = "TRAITS"
    suited: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
    without_proxy: Mapping[str, Any] = MappingProxyType({})

    def entry(self) -> Entry:
        """Import the method."""
        home = import_module(f"{__package__}.{self.module}")
        factory, traits = getattr(home, self.factory or self.module), getattr(home, self.traits)
        return Entry(factory, traits, self.suited, self.without_proxy)

    def summary(self) -> str:
        """The first line of its module's docstring; nothing is imported."""
        source = pkgutil.get_data(__package__, f"{self.module}.py") or b""
        return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


ENTRIES: dict[str, Entry | Own] = {}
"""The methods that are registered in this process, by name."""


class _Factories(Mapping[str, Factory]):
    """The factories of all methods by name; a package is imported when its method is looked up."""

    def __getitem__(self, name: str) -> Factory:
        return entry_of(name).factory

    def __iter__(self) -> Iterator[str]:
        return iter({**ENTRIES, **_offered()})

    def __len__(self) -> int:
        return len({**ENTRIES, **_offered()})

    def __contains__(self, name: object) -> bool:
        return name in ENTRIES or name in _offered()


METHODS: Mapping[str, Factory] = _Factories()
"""The factory of every method, by its name in run files."""


def register(name: str, factory: Factory, traits: GivenTraits | None = None) -> None:
    """Register a method under a name, for ``method.name`` of a run file.

    Parameters
    ----------
    name : the method's name.
    factory : ``factory(federation, *, settings...) -> Method``; its keyword-only arguments, with their types and
        defaults, are the keys that ``[method]`` may hold.
    traits : what the method can be combined with, a value or a function of all settings; ``Traits()`` if left out,
        which is right for federated averaging.

    Raises
    ------
    ConfigError
        if there is another method with this name. The same function may be registered again, as in a notebook.
    """
    there = entry_of(name) if name in ENTRIES else None
    if name in _offered() or (there is not None and _address(there.factory) != _address(factory)):
        raise ConfigError(f"method '{name}': there is another method of this name already; give yours another one")
    ENTRIES[name] = Entry(factory, Traits() if traits is None else traits)


def entry_of(name: str) -> Entry:
    """The method with this name, whose package is imported if necessary.

    Raises
    ------
    KeyError
        if there is no such method.
    ConfigError
        if the installed package that offers it cannot be imported, or its object is not a method.
    """
    offered = _offered()
    if name not in ENTRIES and name in offered:
        ENTRIES[name] = _loaded(offered[name])
    found = ENTRIES[name]
    if isinstance(found, Own):
        found = ENTRIES[name] = found.entry()
    return found


def summary_of(name: str) -> str:
    """What a method does in one line: the first of its module's docstring."""
    found = ENTRIES.get(name)
    if isinstance(found, Own):
        return found.summary()
    return (inspect.getdoc(inspect.getmodule(entry_of(name).factory)) or "").partition("\n")[0]


def known(name: str, key: str = "method.name") -> str:
    """The name, if there is a method with this name.

    Raises
    ------
    ConfigError
        if there is none (names ``key``).
    """
    if name not in METHODS:
        raise ConfigError(
            f"{key} = '{name}': unknown method{suggestion(name, [*METHODS])}; allowed: {', '.join(METHODS)}"
        )
    return name


def traits_of(name: str, settings: Mapping[str, Any] | None = None) -> Traits:
    """The traits of a method with these settings, with defaults for those that are left out.

    Raises
    ------
    KeyError
        if there is no such method.
    """
    factory, traits, *_ = entry_of(name)
    if isinstance(traits, Traits):
        return traits
    return traits({**defaults(factory), **(settings or {})})


def defaults(factory: Factory) -> dict[str, Any]:
    """The default values of a factory's settings, by name."""
    parameters = inspect.signature(factory).parameters.values()
    return {
        one.name: one.default
        for one in parameters
        if one.kind is inspect.Parameter.KEYWORD_ONLY and one.default is not one.empty
    }


@cache
def _offered() -> Mapping[str, EntryPoint]:
    """The entry points of installed packages by name.

    Raises
    ------
    ConfigError
        if a name is offered twice, or a method with this name exists already.
    """
    found: dict[str, EntryPoint] = {}
    problems = []
    for point in entry_points(group=GROUP):
        if point.name in ENTRIES:
            problems.append(f"{_whose(point)} offers a method '{point.name}', and there is one of this name already")
        elif point.name in found and found[point.name].value != point.value:
            problems.append(f"{_whose(found[point.name])} and {_whose(point)} both offer a method '{point.name}'")
        found[point.name] = point
    if problems:
        raise ConfigError([f"{problem}; uninstall it, or let its authors rename the method" for problem in problems])
    return found


def _loaded(point: EntryPoint) -> Entry:
    """Import the object of an entry point as an ``Entry``."""
    try:
        offer = point.load()
    except Exception as error:  # an import may raise anything
        raise ConfigError(
            f"method '{point.name}': {_whose(point)} offers it as '{point.value}', which cannot be imported "
            f"({type(error).__name__}: {error}); repair or uninstall the package"
        ) from error
    entry = offer if isinstance(offer, Entry) else Entry(offer)
    if not callable(entry.factory):
        raise ConfigError(
            f"method '{point.name}': {_whose(point)} offers '{point.value}', which is a {type(offer).__name__}; it "
            "must be a fedquilt.methods.registry.Entry, or a method's factory"
        )
    return entry


def _address(factory: Factory) -> tuple[str, str]:
    return factory.__module__, factory.__qualname__


def _whose(point: EntryPoint) -> str:
    """The package of an entry point, for messages."""
    return f"the installed package '{point.dist.name}'" if point.dist is not None else "an installed package"
