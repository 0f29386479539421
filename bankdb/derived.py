"""What is derived from a bank: found again by what it was made from, checked, made anew, deleted.

A derived array states in its sealed metadata whose it is and what it was made from: the hash of every input that
changes a number. It is used for nothing else, whatever the database says of it: that may have been restored from
an older copy. What cannot be read is an error that names the file; what is not there, or was made from other
inputs, is made again. Nothing is deleted but what this bank made.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from bankdb.arrays import metadata
from bankdb.arrays.chunks import block_problems, read_chunks, write_chunks
from bankdb.arrays.durable import delete_files, files_below, folders_in, is_linked
from bankdb.arrays.metadata import METADATA, ArrayLayout, Metadata, damaged, read_layout, read_metadata
from bankdb.arrays.remote import Location
from bankdb.arrays.zarr_arrays import ensure_group
from bankdb.errors import BankFormatError
from bankdb.progress import Progress
from bankdb.records import DERIVED_KINDS

if TYPE_CHECKING:
    # Workers need no database, whose import takes as long as a tile.
    from bankdb.records import AdapterRecord
    from bankdb.storage.stored_bank import StoredBank

KINDS = DERIVED_KINDS

# Entries of a block of an array in a group: 8 MiB of float64.
_BLOCK_ENTRIES = 2**20
_OWN, _MADE_FROM, _ARRAYS, _COMPLETE = "bank", "made_from", "arrays", "complete"
# Of an array that is filled piece by piece: whether all of it is there.
WHOLE = "whole"
_BY_OLDER = "stored by an older version, without all that tells whether it is right; it is computed again"
LISTED = "entries"
"""Of an array that grows by an entry: the names of those that are there, in their order."""
# Attributes of arrays of version 0.1.0, which had no seal.
OLD_DISTANCES, OLD_PREDICTIONS = {"run", "metric", "rows", "complete"}, {"run"}
_OLD: tuple[set[str], ...] = (set(), {"rows"}, OLD_DISTANCES, OLD_PREDICTIONS)
_NAME = re.compile(r"[0-9a-f]{16}(\.unfinished)?|part-[0-9a-f]{16}|gram")
_FILE = re.compile(r"([a-z][a-z0-9.]*/)?(zarr\.json|c|c(/[0-9]+)+)(\.[0-9a-f]{32}\.partial)?")


def digest_of(**inputs: Any) -> str:
    """Return the sha256 of what numbers are made from, by name."""
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def texts_of(bank: StoredBank, adapters: Sequence[AdapterRecord]) -> dict[str, Any]:
    """Return all that the token counts of these adapters' datasets are made from."""
    record = bank.record
    return {
        "tokenizer": record.tokenizer_fingerprint,
        "vocabulary": record.vocabulary,
        "text_rule": record.text_rule,
        "datasets": [[item.row, item.content_sha256] for item in adapters],
    }


def rows_of(bank: StoredBank, adapters: Sequence[AdapterRecord]) -> dict[str, Any]:
    """Return all that combinations of these adapters' rows are made from."""
    return space_of(bank) | {"adapters": [[item.row, row_of(item)] for item in adapters]}


def space_of(bank: StoredBank) -> dict[str, Any]:
    """Return what all rows of a bank have in common: the scaling they are brought to, and their layout."""
    record = bank.record
    assert record.layout is not None, "a bank with adapters has a layout"
    return {"scaling": record.scaling, "layout": hashlib.sha256(record.layout.encode()).hexdigest()}


def row_of(adapter: AdapterRecord) -> str:
    """Return what tells a row, as it is combined, from every other: its values and its scaling."""
    return f"{adapter.row_sha256}:{adapter.scaling!r}"


# -- arrays --------------------------------------------------------------------------------------------


def find_array(
    bank: StoredBank,
    path: Location,
    layout: ArrayLayout,
    made_from: str,
    progress: Progress,
    *,
    old: Collection[str] = (),
    grows: bool = False,
) -> dict[str, Any] | None:
    """Return the attributes of the array at `path`, or None where it has to be made: there is none, or of other inputs.

    Parameters
    ----------
    old
        Attributes of an array of version 0.1.0 that is as good: its attribute `run` is what it was made from.
    grows
        Whether its shape may be another one, and is made to hold `layout`'s.

    Raises
    ------
    BankFormatError
        Its metadata were changed, or it is another bank's or nobody's.
    """
    found = _own(bank, path)
    if found is None or found.layout is None:
        return None
    attributes = found.attributes
    if found.sealed:
        before = attributes.get(_MADE_FROM)
    elif old and attributes.keys() == set(old):
        before = attributes.get("run")
    else:
        progress.note(f"{path}: {_BY_OLDER}")
        return None
    wanted, shape = layout, found.layout.shape
    if grows and len(shape) == len(layout.shape) and len(set(shape)) == 1:
        wanted = replace(layout, shape=tuple(map(max, shape, layout.shape)))
        layout = replace(layout, shape=shape)
    if before != made_from or found.layout != layout:
        return None
    if wanted != layout:
        metadata.write_array(path, wanted, _marked(bank, made_from, attributes))
    return attributes


def make_array(
    bank: StoredBank,
    path: Location,
    layout: ArrayLayout,
    made_from: str,
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """Make an array without chunks, in place of one of this bank's.

    Raises
    ------
    BankFormatError
        What is there cannot be deleted: it is not this bank's, or behind a symbolic link.
    """
    _make_room(bank, path)
    metadata.write_array(path, layout, _marked(bank, made_from, attributes or {}))


def set_attributes(bank: StoredBank, path: Location, **changes: Any) -> None:
    """Write attributes of an array, if they are other ones; its chunks stay."""
    layout, before = read_layout(path)
    after = before | changes
    if after != before:
        metadata.write_array(
            path, layout, _marked(bank, str(before.get(_MADE_FROM, before.get("run"))), after)
        )


def _marked(bank: StoredBank, made_from: str, attributes: Mapping[str, Any]) -> dict[str, Any]:
    others = {key: value for key, value in attributes.items() if key != "run"}
    return others | {_OWN: bank.record.identity, _MADE_FROM: made_from}


# -- groups that count when they are whole -------------------------------------------------------------


def find_group(bank: StoredBank, path: Location, progress: Progress, made_from: str | None = None) -> bool:
    """Return whether the group at `path` is whole and made from these inputs, or from any.

    Raises
    ------
    BankFormatError
        Its metadata were changed, or it is another bank's or nobody's.
    """
    found = _own(bank, path)
    if found is not None and not found.sealed:
        progress.note(f"{path}: {_BY_OLDER}")
    if found is None or not found.sealed or made_from not in {None, found.attributes.get(_MADE_FROM)}:
        return False
    return all((path / name / METADATA).is_file() for name in found.attributes.get(_ARRAYS, ()))


def write_group(bank: StoredBank, path: Location, made_from: str, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays as one group, in place of one of this bank's; its own metadata come last and make it count."""
    _make_room(bank, path)
    for name, values in arrays.items():
        rows = max(1, _BLOCK_ENTRIES // max(1, values[:1].size)) if values.ndim else 1
        chunks = (max(1, min(rows, len(values))), *values.shape[1:])
        layout = ArrayLayout(values.shape, chunks, values.dtype.name)
        metadata.write_array(path / name, layout, _marked(bank, made_from, {}))
        write_chunks(path / name, [0] * values.ndim, values)
    metadata.write_group(path, _marked(bank, made_from, {_ARRAYS: sorted(arrays)}))


def mark_group(bank: StoredBank, path: Location, made_from: str, marks: Mapping[str, Any]) -> None:
    """Write the metadata of a group whose arrays are there, of which others may come and go."""
    metadata.write_group(path, _marked(bank, made_from, marks))


def marks_of(bank: StoredBank, path: Location, made_from: str) -> dict[str, Any] | None:
    """Return what `mark_group` wrote; None where nothing is marked as made from these inputs.

    Raises
    ------
    BankFormatError
        The group's metadata were changed, or it is another bank's or nobody's.
    """
    found = _own(bank, path)
    whole = found is not None and found.sealed and found.attributes.get(_MADE_FROM) == made_from
    return found.attributes if whole and found is not None else None


def read_group(path: Location) -> dict[str, NDArray[Any]]:
    """Read all arrays of a group.

    Raises
    ------
    BankFormatError
        Something of it is damaged or not there; it is named.
    """
    found = read_metadata(path)
    if found is None or not found.sealed:
        raise damaged(path / METADATA, "a whole group was expected, none found", path)
    return {name: read_chunks(path / name, delete=path, missing=False) for name in found.attributes[_ARRAYS]}


# -- deleting ------------------------------------------------------------------------------------------


def delete_derived(bank: StoredBank, path: Location) -> None:
    """Delete an array or a group that this bank made: `derived_files`. Raises BankFormatError as that does."""
    if path.exists():
        delete_files(path, derived_files(bank, path))


def derived_files(bank: StoredBank, path: Location) -> list[str]:
    """Return the files of an array or a group of this bank's, in the order in which they are deleted.

    Files that no version of it could have written are left out.

    Raises
    ------
    BankFormatError
        It is not this bank's, or behind a symbolic link: nothing of it is to be deleted.
    """
    if is_linked(path, bank.derived):
        raise BankFormatError(
            f"{path}: behind a symbolic link, where nothing is deleted; put a folder in the link's place, or keep "
            "the arrays elsewhere: `bank init --arrays`"
        )
    for item in (path, *folders_in(path)):
        _own(bank, item)
    names = [name for name in files_below(path) if _FILE.fullmatch(name)]
    # What makes it count goes first.
    return sorted(names, key=lambda name: (not name.endswith(METADATA), name.count("/")))


def delete_others(bank: StoredBank, root: Location, keep: Collection[str] = ()) -> None:
    """Delete what this bank made earlier within `root`, and nothing that is in doubt."""
    if is_linked(root, bank.derived):
        return
    for path in folders_in(root):
        if path.name in keep or not _NAME.fullmatch(path.name):
            continue
        try:
            delete_derived(bank, path)
        except BankFormatError:
            continue


def _make_room(bank: StoredBank, path: Location) -> None:
    ensure_group(path.parent)
    delete_derived(bank, path)


def _own(bank: StoredBank, path: Location) -> Metadata | None:
    """Return the metadata of what is at `path`, None if there are none; raise unless this bank wrote them."""
    found = read_metadata(path)
    if found is None:
        return None
    owner, others = found.attributes.get(_OWN), found.attributes.keys()
    if owner != bank.record.identity if found.sealed else others not in _OLD:
        reason = "changed since it was written, or not this bank's: move it away, if it is"
        raise damaged(path / METADATA, reason, path)
    return found


# -- verification --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Problem:
    """Something of a derived array that is damaged, or was left by an interrupted run or an older version.

    Attributes
    ----------
    text
        What it is, with its file, and what to do.
    delete
        What is in the way of making it again.
    damage
        Whether it is damage.
    block
        Whether `delete` is a block alone.
    """

    text: str
    delete: Location
    damage: bool = True
    block: bool = False


def derived_problems(bank: StoredBank, progress: Progress) -> Iterator[Problem]:
    """Check every block of all derived arrays, one after another."""
    done = {bank.run_array(run) for run in bank.runs.all() if run.state == "done"}
    roots = [bank.array_path(kind) for kind in KINDS]
    progress.begin("verify derived arrays", sum(len(folders_in(root)) for root in roots))
    for root in roots:
        try:
            read_metadata(root)
        except BankFormatError as error:
            yield Problem(str(error), root)
        for path in folders_in(root):
            yield from _problems_in(bank, path, path, done)
            progress.advance()
    progress.end()


def delete_damaged(bank: StoredBank, problem: Problem) -> bool:
    """Delete what is in the way of making it again, a block of this bank's or a whole array; return whether it went."""
    path = problem.delete
    try:
        if problem.block and not is_linked(path, bank.derived):
            delete_files(path.parent, [path.name])
        else:
            delete_derived(bank, path)
    except BankFormatError:
        return False
    return not path.exists()


def _problems_in(
    bank: StoredBank, path: Location, whole: Location, done: Collection[Location | None]
) -> Iterator[Problem]:
    try:
        found = _own(bank, path)
    except BankFormatError as error:
        yield Problem(str(error), whole)
        return
    if found is None:
        if any(_FILE.fullmatch(name) for name in files_below(path)):
            yield Problem(f"{path / METADATA}: missing; the array is made again", whole, damage=False)
    elif not found.sealed and (
        path.parent == bank.array_path("neural") or found.attributes.keys() == {"rows"}
    ):
        yield Problem(f"{path}: {_BY_OLDER}", whole, damage=False)
    elif found.group:
        for name in found.attributes.get(_ARRAYS) or [item.name for item in folders_in(path)]:
            yield from _problems_in(bank, path / name, whole, done)
    elif found.layout is None:
        yield Problem(str(damaged(path / METADATA, "of a layout that is not known", whole)), whole)
    else:
        by_block = _COMPLETE in found.attributes
        for file, reason in block_problems(path, found.layout, _expected(path, found, done)):
            delete = file if by_block else whole
            text = str(damaged(file, reason, delete, "it is computed again when it is needed"))
            yield Problem(text, delete, block=by_block)


def _expected(
    path: Location, found: Metadata, done: Collection[Location | None]
) -> Iterator[tuple[int, ...]]:
    """Return the blocks of an array that have to be there."""
    layout = found.layout
    assert layout is not None, "the caller knows the layout"
    if LISTED in found.attributes:  # an entry a name, in their order, along the first axis
        others = (0,) * (len(layout.shape) - 1)
        return ((block, *others) for block in range(-(-len(found.attributes[LISTED]) // layout.blocks[0])))
    known = found.attributes.get(_COMPLETE, found.attributes.get("rows"))
    if isinstance(known, dict):
        blocks = sorted({int(row) // layout.blocks[0] for row in known if row.isdecimal()})
        return itertools.product(blocks, repeat=2)
    filling = path.name == "adapters" and path not in done and not found.attributes.get(WHOLE)
    if filling or path.name.startswith("part-"):
        return iter(())
    sizes = zip(layout.shape, layout.blocks, strict=True)
    return itertools.product(*(range(-(-size // block)) for size, block in sizes))
