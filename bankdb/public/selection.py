"""Which of the adapters that a listing has are wanted: by name, by base model, and how many."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass

from bankdb.errors import ParameterError

_LONGEST_PATTERN = 200


@dataclass(frozen=True, slots=True)
class Selection:
    """Which adapters of a listing are wanted.

    Attributes
    ----------
    include, exclude
        Shell patterns (`*`, `?`, `[...]`) of names, without the owner's, in which capitals count; an adapter is wanted
        if its own name or its dataset's fits one of `include`, if there are any, and neither fits one of `exclude`.
    limit
        At most so many pairs: the first ones, by name.

    Raises
    ------
    ParameterError
        A pattern is empty or longer than 200 characters, or the limit is below 1.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    limit: int | None = None

    def __post_init__(self) -> None:
        """Check."""
        for option, patterns in (("include", self.include), ("exclude", self.exclude)):
            for pattern in patterns:
                if not 0 < len(pattern) <= _LONGEST_PATTERN:
                    raise ParameterError(
                        f"{option}: expected a pattern of 1 to {_LONGEST_PATTERN} characters such as '*-r16-*', found "
                        f"{pattern[:60]!r}"
                    )
        if self.limit is not None and self.limit < 1:
            raise ParameterError(f"limit: expected at least 1, found {self.limit}")

    def wants(self, adapter: str, dataset: str, usual: str | None = None) -> bool:
        """Whether an adapter is wanted.

        Parameters
        ----------
        adapter, dataset
            Their names; that of an adapter without a dataset is empty.
        usual
            The pattern of a public bank's adapters, which holds unless `include` names the adapter itself.
        """
        if _fits(adapter, self.exclude) or (dataset and _fits(dataset, self.exclude)):
            return False
        if _fits(adapter, self.include):
            return True
        if usual is not None and not fnmatch.fnmatchcase(adapter, usual):
            return False
        return not self.include or bool(dataset and _fits(dataset, self.include))


EVERYTHING = Selection()


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def by_number(name: str) -> list[tuple[int, int, str]]:
    """A key by which task20 comes before task100."""
    parts = re.split(r"([0-9]+)", name)
    return [
        (1, int(part), "") if part.isascii() and part.isdigit() else (0, 0, part) for part in parts if part
    ]
