"""Approaches by name: those of this project, installed packages' own, and any that a program registers.

A package offers an approach by an entry point of the group `lora_bank.approaches`: its name, and the class.
Such a class is loaded when it is asked for, and not before.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any, TypeVar

from bankdb.errors import ConflictError, ParameterError
from compute.approaches.base import OPTIONS, Approach
from compute.approaches.kinds.by_distance import Attentional, Nearest, Normalized, Uniform
from compute.approaches.kinds.matching import Matching
from compute.approaches.kinds.neural import Neural
from compute.approaches.kinds.oracle import Oracle
from compute.approaches.kinds.ridge import Ridge, RidgeSigned
from compute.approaches.kinds.selected import Selected
from compute.approaches.kinds.tuned import Tuned

if TYPE_CHECKING:
    from importlib import metadata

_Registered = TypeVar("_Registered", bound=Approach | type[Approach])

GROUP = "lora_bank.approaches"
RESERVED = ("all", "base", "own", "distance")
"""What `--approach` and reports call something else by."""

_registered: dict[str, Approach] = {
    approach.name: approach
    for approach in (
        Attentional(),
        Normalized(),
        Neural(),
        Uniform(),
        Nearest(),
        Tuned(),
        Ridge(),
        RidgeSigned(),
        Matching(),
        Selected(),
        Oracle(),
    )
}


def register(approach: _Registered) -> _Registered:
    """Make an approach available by its name: to every workflow, the command line and its help.

    Parameters
    ----------
    approach
        An approach, or a class of which one is made without arguments; it is returned, so that this may stand
        above a class.

    Raises
    ------
    ConflictError
        There is one of this name.
    ParameterError
        It is no approach, or states no name that a command line can have.
    """
    made = _instance(approach, "register")
    if made.name in names():
        raise ConflictError(f"approach {made.name}: already registered; choose another name")
    _registered[made.name] = made
    return approach


def unregister(name: str) -> None:
    """Take an approach away again; what was stored by it stays.

    Raises
    ------
    ParameterError
        None of this name is registered.
    """
    if name not in _registered:
        raise _unknown(name)
    del _registered[name]


def names() -> tuple[str, ...]:
    """Return the names of all approaches, in the order of their registration; installed packages' come last."""
    return (*_registered, *(name for name in _installed() if name not in _registered))


def is_registered(name: object) -> bool:
    """Whether a name is an approach's of this project, or one that was registered or loaded; no package is asked."""
    return isinstance(name, str) and name in _registered


def get_approach(name: str) -> Approach:
    """Return the approach of this name.

    Raises
    ------
    ParameterError
        There is none, or what an installed package offers under the name is no approach.
    """
    if not isinstance(name, str):
        raise _unknown(name)
    if name not in _registered:
        offered = _installed().get(name)
        if offered is None:
            raise _unknown(name)
        _registered[name] = _loaded(offered)
    return _registered[name]


def approaches() -> tuple[Approach, ...]:
    """Return all approaches; installed packages' are loaded."""
    return tuple(map(get_approach, names()))


def descriptions() -> dict[str, str]:
    """Return what each approach does, by name, in a line; of one not loaded yet, which package it is from."""
    return {
        name: _registered[name].about if name in _registered else f"from the package {_package(name)}"
        for name in names()
    }


def is_bound(name: str) -> bool:
    """Whether a stored result is by an approach that knows the answer; no, if it is by none that is known."""
    return name in names() and get_approach(name).knows_answer


def is_baseline(name: str) -> bool:
    """Whether a stored result is by the approach that others are compared with; likewise."""
    return name in names() and get_approach(name).baseline


def _unknown(name: str) -> ParameterError:
    return ParameterError(f"approach: expected one of {', '.join(names())}, found {name!r}; use one of them")


def _instance(approach: object, origin: str) -> Approach:
    made = approach
    if isinstance(approach, type) and issubclass(approach, Approach):
        try:
            made = approach()
        except TypeError as error:
            raise ParameterError(f"{origin}: no approach can be made of {approach!r}: {error}") from error
    if not isinstance(made, Approach):
        raise ParameterError(
            f"{origin}: expected a class derived from compute.approaches.base.Approach, found {approach!r}"
        )
    stated: tuple[Any, ...] = getattr(made, "name", None), getattr(made, "about", None)
    if not all(isinstance(text, str) and text for text in stated):
        raise ParameterError(f"{origin}: expected a name and a line about it in {approach!r}; set both")
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", made.name) or made.name in RESERVED:
        raise ParameterError(
            f"{origin}: expected a name of small letters, digits and single hyphens, and none of"
            f" {', '.join(RESERVED)}, found {made.name!r}; choose another"
        )
    unknown = set(made.reads) - set(OPTIONS)
    if unknown:
        raise ParameterError(
            f"{origin}: expected {made.name} to read some of {', '.join(OPTIONS)}, found {', '.join(sorted(unknown))};"
            " correct reads"
        )
    return made


@functools.cache
def _installed() -> dict[str, metadata.EntryPoint]:
    """What installed packages offer, by name; looked for once, since every package's files are read."""
    from importlib import metadata

    found: dict[str, metadata.EntryPoint] = {}
    for offered in metadata.entry_points(group=GROUP):
        if offered.name in found or offered.name in _registered:
            other = found.get(offered.name)
            whose = "this project" if other is None else f"the package {_package_of(other)}"
            raise ConflictError(
                f"approach {offered.name}: of the package {_package_of(offered)} and of {whose}; uninstall one"
            )
        found[offered.name] = offered
    return found


def _package(name: str) -> str:
    return _package_of(_installed()[name])


def _package_of(offered: metadata.EntryPoint) -> str:
    return offered.dist.name if offered.dist is not None else offered.value


def _loaded(offered: metadata.EntryPoint) -> Approach:
    origin = f"approach {offered.name} of the package {_package_of(offered)}"
    try:
        loaded = offered.load()
    except Exception as error:
        raise ParameterError(f"{origin}: cannot be loaded: {error}; repair or uninstall it") from error
    made = _instance(loaded, origin)
    if made.name != offered.name:
        raise ParameterError(f"{origin}: expected a class of this name, found {made.name!r}; tell its author")
    return made
