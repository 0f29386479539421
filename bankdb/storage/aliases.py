"""The other names under which adapters may state a bank's base model: added and removed."""

from __future__ import annotations

from collections.abc import Iterable

from bankdb.errors import BankNotFoundError, ConflictError, ParameterError, listed
from bankdb.storage.stored_bank import StoredBank


def add_aliases(bank: StoredBank, names: Iterable[str]) -> tuple[str, ...]:
    """Let adapters in that state the base model under other names too; return all of these.

    Raises
    ------
    ParameterError
        A name is empty, or more than a line.
    """
    new = [name for name in names if name != bank.record.base_model]
    for name in new:
        if not name.strip() or not name.isprintable():
            raise ParameterError(
                f"alias: expected a name of the base model in one line, found {name!r:.80}; give it as the adapters' "
                "configurations state it"
            )
    return bank.origins.add_aliases(new)


def remove_aliases(bank: StoredBank, names: Iterable[str]) -> tuple[str, ...]:
    """Forget other names of the base model; return those that are left.

    Raises
    ------
    BankNotFoundError
        The bank has no such alias.
    ConflictError
        An adapter of the bank states the base model so.
    """
    from bankdb.peft.weights import is_base_model

    gone, before = set(names), bank.record.base_model_aliases
    if unknown := sorted(gone - set(before)):
        raise BankNotFoundError(
            f"{listed(unknown)}: no such alias of the bank, which has {listed(before) if before else 'none'}"
        )
    left = tuple(name for name in before if name not in gone)
    for stated, count in bank.origins.base_models().items():
        if stated is not None and not is_base_model(stated, (bank.record.base_model, *left)):
            raise ConflictError(
                f"{stated}: {count} of the bank's adapters state the base model so; remove these first, or keep the "
                "alias"
            )
    bank.origins.set_aliases(left)
    return left
