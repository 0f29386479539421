"""Public banks that are known by name: their base model, where they are, and what is usual with them."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from bankdb.errors import ParameterError

if TYPE_CHECKING:
    from bankdb.datasets.tokenizer import BankTokenizer

_TABLE = Path(__file__).with_name("known.toml")
Naming = Literal["adapter", "dataset"]


@dataclass(frozen=True, slots=True)
class KnownBank:
    """A public bank; what each entry means is told in `known.toml`."""

    name: str
    about: str
    source: str
    base_model: str
    tokenizer: str
    aliases: tuple[str, ...]
    owner: str
    adapters: str
    names: Naming
    group_pattern: str

    @classmethod
    def of(cls, name: str, entries: Mapping[str, Any]) -> KnownBank:
        """Read an entry of the table. Raises ValueError for one that is not of its form."""
        wanted = {field.name for field in fields(cls)} - {"name"}
        if entries.keys() != wanted:
            raise ValueError(f"{name}: expected the keys {sorted(wanted)}, found {sorted(entries)}")
        for key, value in entries.items():
            texts = value if key == "aliases" else [value]
            if not isinstance(texts, list) or not all(isinstance(one, str) and one for one in texts):
                raise ValueError(f"{name}: {key}: expected text, found {value!r}")
        if entries["names"] not in get_args(Naming):
            raise ValueError(f"{name}: names: expected one of {get_args(Naming)}, found {entries['names']!r}")
        return cls(name=name, **{**entries, "aliases": tuple(entries["aliases"])})


@functools.cache
def known_banks() -> Mapping[str, KnownBank]:
    """Return the public banks of the table, by name."""
    with _TABLE.open("rb") as file:
        return {name: KnownBank.of(name, entries) for name, entries in tomllib.load(file).items()}


def known_bank(name: str) -> KnownBank:
    """Return a public bank by its name, in which case does not count. Raises ParameterError if it is unknown."""
    found = known_banks().get(name.casefold())
    if found is None:
        raise ParameterError(
            f"like: expected the name of a known public bank, one of {', '.join(known_banks())}; found {name[:80]!r}; "
            "for another give base model and tokenizer"
        )
    return found


def made_like(
    like: str | None,
    base_model: str | None,
    tokenizer: str | Path | BankTokenizer | None,
    aliases: Sequence[str],
) -> tuple[str, str | Path | BankTokenizer, tuple[str, ...]]:
    """Return base model, tokenizer and aliases of a bank: those given, and else those of a known public bank.

    Where another name of the base model is given, that of the public bank is an alias.

    Raises
    ------
    ParameterError
        No such bank is known, or something is given by neither.
    """
    if like is None:
        if base_model is None or tokenizer is None:
            lacking = "base model" if base_model is None else "tokenizer"
            raise ParameterError(
                f"no {lacking} is given; expected base model and tokenizer (--base-model, --tokenizer), or a known "
                f"public bank (--like), one of {', '.join(known_banks())}"
            )
        return base_model, tokenizer, tuple(aliases)
    known = known_bank(like)
    chosen = base_model or known.base_model
    others = (known.base_model, *known.aliases, *aliases)
    return chosen, tokenizer or known.tokenizer, tuple(dict.fromkeys(one for one in others if one != chosen))


def bank_of_owner(owner: str) -> KnownBank | None:
    """Return the public bank that an owner on the hub has; None if none is known."""
    return next(
        (one for one in known_banks().values() if one.owner.casefold() == owner.casefold()),
        None,
    )
