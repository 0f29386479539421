"""Which modules a configuration adapts, by PEFT's rules (`check_target_module_exists`).

Four options may be regular expressions, and come from files of others: they are evaluated by `re` itself, since that
is what PEFT does, but in a process of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bankdb.errors import one_line
from bankdb.patterns.bounded import matches


class PatternError(ValueError):
    """A regular expression that is none, or that takes too long; the text says which and why, in one line."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The options that say which modules are adapted.

    Attributes
    ----------
    target_modules
        Names, or one regular expression.
    exclude_modules
        Names, one regular expression, or nothing.
    layers
        `layers_to_transform`, None where it is not set.
    layers_patterns
        `layers_pattern`: regular expressions of what stands before a layer's number.
    """

    target_modules: tuple[str, ...] | str
    exclude_modules: tuple[str, ...] | str = ()
    layers: tuple[int, ...] | None = None
    layers_patterns: tuple[str, ...] = ()

    def selected(self, modules: Sequence[str]) -> frozenset[str]:
        """Return which of some modules, by their paths in the base model, are adapted.

        Where several numbers stand in a module's path, versions of PEFT differ in which is the layer's: any counts.

        Raises
        ------
        PatternError
            A regular expression is none, or takes too long.
        """
        found = _matching(self.target_modules, modules, "target_modules")
        if not isinstance(self.target_modules, str) and self.layers is not None:
            whole = frozenset(self.target_modules)
            found = frozenset(module for module in found if module in whole) | self._in_layers(
                [module for module in found if module not in whole]
            )
        return found - _matching(self.exclude_modules, modules, "exclude_modules")

    def idle(self, modules: Sequence[str]) -> list[str]:
        """Return the names among the targets that select none of the modules."""
        if isinstance(self.target_modules, str):
            return []
        used = {suffix for module in modules for suffix in _suffixes(module)}
        return [name for name in self.target_modules if name not in used]

    def _in_layers(self, modules: Sequence[str]) -> frozenset[str]:
        layers = frozenset(self.layers or ())
        if not self.layers_patterns:
            return frozenset(
                m for m in modules if any(int(n) in layers for n in re.findall(r"\.(\d{1,9})\.", m))
            )
        found: set[str] = set()
        for pattern in self.layers_patterns:
            numbers = _evaluated(
                rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\.", False, tuple(modules), "layers_pattern"
            )
            found |= {m for m, n in zip(modules, numbers, strict=True) if n and int(n[:9]) in layers}
        return frozenset(found)


def _matching(wanted: tuple[str, ...] | str, modules: Sequence[str], option: str) -> frozenset[str]:
    if not isinstance(wanted, str):
        names = frozenset(wanted)
        return frozenset(m for m in modules if any(suffix in names for suffix in _suffixes(m)))
    if option == "target_modules" and wanted.lower() == "all-linear":
        return frozenset(modules)
    if not wanted:
        return frozenset()
    matches = _evaluated(wanted, True, tuple(modules), option)
    return frozenset(m for m, match in zip(modules, matches, strict=True) if match is not None)


def _suffixes(module: str) -> Iterator[str]:
    """Yield a module's path, and what is left of it after each of its dots."""
    yield module
    start = module.find(".")
    while start >= 0:
        yield module[start + 1 :]
        start = module.find(".", start + 1)


def _evaluated(pattern: str, whole: bool, names: tuple[str, ...], option: str) -> list[str | None]:
    answer = matches(pattern, "fullmatch" if whole else "match", "idx", names) if names else []
    if isinstance(answer, str):
        raise PatternError(
            f"{option} {one_line(repr(pattern), 80)} {answer}; list the modules' names instead"
        )
    return answer
