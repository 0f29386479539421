"""What a shell completes beside commands, options and their choices: names of adapters, and of groups."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bankdb.errors import BankError, ConflictError

if TYPE_CHECKING:
    from bankdb.records import AdapterRecord


def complete_adapters(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of adapters that begin so and were not given yet."""
    given = ctx.params.get(param.name or "")
    taken = set(given) if isinstance(given, tuple | list) else set()
    names = (record.name for record in _adapters(ctx))
    return [name for name in names if name.startswith(incomplete) and name not in taken]


def complete_groups(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return names of adapters where one is expected, and after it the groups that there are."""
    if len(ctx.params.get(param.name or "") or ()) % 2 == 0:
        return complete_adapters(ctx, param, incomplete)
    groups = {record.group for record in _adapters(ctx) if record.group is not None}
    return sorted(group for group in groups if group.startswith(incomplete))


def _adapters(ctx: click.Context) -> list[AdapterRecord]:
    """Return the adapters of the bank that the command line names so far; none where it cannot be read.

    A message would be printed into the line that is being typed: the command itself says what is wrong.
    """
    import bankdb

    path = ctx.params.get("bank_path") or os.environ.get("BANK_PATH") or "bank"
    try:
        with bankdb.open(Path(path), told=_refused) as bank:
            return bank.adapters()
    except (BankError, OSError):
        return []


def _refused(line: str) -> None:
    """Have no schema upgraded while somebody types: a command does it, and says so."""
    raise ConflictError(line)
