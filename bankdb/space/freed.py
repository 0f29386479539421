"""What of a bank can be made again, how much space it takes, and freeing it.

Nothing here is an adapter, a dataset, the tokenizer or the catalogue. Of an array, what makes it count goes first, so
that whoever is killed in between leaves arrays that are whole and others that are not there; the same again goes on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from bankdb.arrays.durable import delete_files, folders_in, is_linked, relative_name, sizes_below
from bankdb.arrays.remote import Location
from bankdb.derived import derived_files, find_group
from bankdb.errors import BankFormatError, ConflictError, FileSystemError
from bankdb.progress import Progress, SilentProgress
from bankdb.records import DERIVED_KINDS
from bankdb.space.kinds import FREEABLE, Freeable
from bankdb.space.unfinished import unfinished
from bankdb.storage.stored_bank import StoredBank

_ANSWERS, _STORED, _UNFINISHED = "answers", "stored", "unfinished"


@dataclass(slots=True)
class Amount:
    """How much there is of a kind.

    Attributes
    ----------
    files
        Files, objects under a URL, or records of the database.
    size
        Bytes of all of them.
    """

    files: int = 0
    size: int = 0


@dataclass(slots=True)
class Freed:
    """What can be freed, or was.

    Attributes
    ----------
    amounts
        By kind, in the order of `FREEABLE`; kinds of which there is nothing too.
    kept
        What is in doubt and stays where it is, a line each.
    """

    amounts: dict[str, Amount] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes of all kinds."""
        return sum(amount.size for amount in self.amounts.values())


@dataclass(frozen=True, slots=True)
class _Part:
    """Files that go together, by their names below a place, in the order in which they go."""

    place: Location
    names: tuple[str, ...]
    size: int


def freeable(bank: StoredBank, kinds: Collection[str]) -> Freed:
    """Return how much of some kinds there is; nothing is changed.

    Raises
    ------
    ArrayStoreUnavailableError, DatabaseUnavailableError
        The store of a bank on a URL, or its database, failed.
    """
    found = Freed()
    seen: set[str] = set()
    for kind in _in_order(kinds):
        found.amounts[kind.name] = amount = Amount()
        if kind.name == _ANSWERS:
            amount.files, amount.size = bank.generations.space()
        for part in _parts(bank, kind.name, seen, found.kept):
            amount.files += len(part.names)
            amount.size += part.size
    return found


def free(bank: StoredBank, kinds: Collection[str], progress: Progress | None = None) -> Freed:
    """Delete all that there is of some kinds; return what was deleted.

    Raises
    ------
    ConflictError
        Another process computes on this bank just now: nothing is deleted.
    FileSystemError
        The bank may only be read.
    ArrayStoreUnavailableError, DatabaseUnavailableError
        As `freeable`; what was deleted before is deleted.
    """
    progress = progress or SilentProgress()
    if bank.read_only:
        raise FileSystemError(
            f"{bank.path}: the bank is read-only here, so that nothing of it is deleted; make the folder and its "
            "files writable"
        )
    with bank.nobody_computing() as alone:
        if not alone:
            raise ConflictError(
                f"{bank.path}: another run computes on this bank, so nothing is deleted; wait for its end, and run "
                "the same command again"
            )
        return _free(bank, kinds, progress)


def _free(bank: StoredBank, kinds: Collection[str], progress: Progress) -> Freed:
    done = Freed()
    seen: set[str] = set()
    chosen = _in_order(kinds)
    progress.begin("free", len(chosen))
    for kind in chosen:
        done.amounts[kind.name] = amount = Amount()
        if kind.name == _ANSWERS:
            amount.files, amount.size = bank.generations.forget()
        for part in _parts(bank, kind.name, seen, done.kept):
            delete_files(part.place, part.names)
            amount.files += len(part.names)
            amount.size += part.size
        progress.advance()
    _forget_pieces(bank)
    progress.end()
    return done


def _in_order(kinds: Collection[str]) -> list[Freeable]:
    return [kind for kind in FREEABLE if kind.name in kinds]


def _parts(bank: StoredBank, kind: str, seen: set[str], kept: list[str]) -> Iterator[_Part]:
    """Yield what there is of a kind in files, but what was `seen`; tell of what has to be `kept`."""
    if kind == _UNFINISHED:
        yield from _unfinished_files(bank, seen)
    for place in list(_places(bank, kind, kept)):
        try:
            names = derived_files(bank, place)
        except BankFormatError as error:
            kept.append(str(error))
            continue
        sizes = sizes_below(place)
        new = tuple(name for name in names if name in sizes and f"{place}/{name}" not in seen)
        seen.update(f"{place}/{name}" for name in new)
        if new:
            yield _Part(place, new, sum(sizes[name] for name in new))


def _places(bank: StoredBank, kind: str, kept: list[str]) -> Iterator[Location]:
    """Yield the arrays and groups that are of a kind."""
    if kind in {_STORED, _UNFINISHED}:
        root = bank.array_path("predictions" if kind == _STORED else "gram")
    elif kind in DERIVED_KINDS:
        root = bank.array_path(kind)
    else:
        return
    for place in folders_in(root):
        is_part = place.name.startswith("part-")
        if kind == _STORED:
            if _is_read_by_coefficients(bank, place, kept):
                yield place / "adapters"
        elif kind in {"gram", _UNFINISHED}:
            # Sums over slices of columns, which a Gram matrix that was not finished left.
            if is_part == (kind == _UNFINISHED):
                yield place
        else:
            yield place


def _is_read_by_coefficients(bank: StoredBank, group: Location, kept: list[str]) -> bool:
    """Whether a run of predictions is all there without their numbers; version 0.1.0 kept no list of sources."""
    try:
        whole = find_group(bank, group, SilentProgress())
    except BankFormatError as error:
        kept.append(str(error))
        return False
    return whole and (group / "coefficients" / "zarr.json").is_file()


def _unfinished_files(bank: StoredBank, seen: set[str]) -> Iterator[_Part]:
    by_root: dict[Location, list[str]] = {}
    for file in unfinished(bank):
        root = next(place for place in map(bank.array_path, DERIVED_KINDS) if file.is_relative_to(str(place)))
        by_root.setdefault(root, []).append(relative_name(file, root))
    for root, names in by_root.items():
        new = {name: size for name, size in sizes_below(root).items() if name in names}
        new = {name: size for name, size in new.items() if f"{root}/{name}" not in seen}
        seen.update(f"{root}/{name}" for name in new)
        if new and not is_linked(root, bank.derived):
            yield _Part(root, tuple(new), sum(new.values()))


def _forget_pieces(bank: StoredBank) -> None:
    """Have runs whose array is gone begin anew: of those, too, whose array was deleted before a kill."""
    for run in bank.runs.all():
        path = bank.run_array(run)
        if path is not None and not path.exists() and (run.state == "done" or bank.runs.done_pieces(run.id)):
            bank.runs.reopen(run.id)
