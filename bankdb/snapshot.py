"""One list of adapters for all that a command computes, whatever others ingest meanwhile."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, TypeVar, cast

from bankdb.errors import BankError, ConflictError, listed, one_line
from bankdb.progress import Progress, SilentProgress
from bankdb.records import AdapterRecord


class _Adapters(Protocol):
    """What of a bank is read here."""

    @property
    def path(self) -> Path: ...

    def adapters(self) -> list[AdapterRecord]: ...

    def rows(self) -> set[int]: ...


_F = TypeVar("_F", bound=Callable[..., Any])
# Of this thread alone: an ingest into the same bank by another thread has to see what there is now.
_SNAPSHOTS: ContextVar[Mapping[int, tuple[AdapterRecord, ...]]] = ContextVar(
    "snapshots", default=MappingProxyType({})
)


def snapshot_of(bank: _Adapters) -> tuple[AdapterRecord, ...]:
    """Return the adapters by row: those of the command that runs, or as of now."""
    return _SNAPSHOTS.get().get(id(bank)) or tuple(bank.adapters())


@contextlib.contextmanager
def one_snapshot(bank: _Adapters, progress: Progress) -> Iterator[None]:
    """Let `ready_adapters` answer the same until the end; a note tells then what changed meanwhile.

    Rows are written once and their numbers never used again, so that what is computed of a snapshot is right,
    though of another bank than there is then. Inside of another snapshot of the bank it is that one.

    Raises
    ------
    ConflictError
        An error came up, and an adapter of the snapshot is not in the bank any more.
    """
    if id(bank) in _SNAPSHOTS.get():
        yield
        return
    adapters = tuple(bank.adapters())
    token = _SNAPSHOTS.set({**_SNAPSHOTS.get(), id(bank): adapters})
    try:
        yield
    except ConflictError:
        raise
    except BankError as error:
        if gone := _gone(adapters, bank.rows()):
            raise ConflictError(
                f"{bank.path}: {listed(gone, 3)} was replaced by another process while this command read it "
                f"({one_line(error)}); run the same command again"
            ) from error
        raise
    finally:
        _SNAPSHOTS.reset(token)
    now = bank.rows()
    gone, added = _gone(adapters, now), now - {record.row for record in adapters}
    if gone or added:
        progress.note(
            f"the bank changed meanwhile ({len(added)} adapters stored, {len(gone)} replaced): what is told is of the "
            f"{len(adapters)} adapters that it had at the start"
        )


def _gone(adapters: Sequence[AdapterRecord], rows: set[int]) -> list[str]:
    return [record.name for record in adapters if record.row not in rows]


def of_one_snapshot(function: _F) -> _F:
    """Let a function of a bank, and of a `progress` by keyword, run inside of `one_snapshot`."""

    @functools.wraps(function)
    def inside(bank: _Adapters, *arguments: Any, **options: Any) -> Any:
        with one_snapshot(bank, options.get("progress") or SilentProgress()):
            return function(bank, *arguments, **options)

    return cast("_F", inside)
