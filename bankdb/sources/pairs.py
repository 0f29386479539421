"""Finds pairs of adapter and dataset in a folder or a manifest, and resolves those on local disk.

One pair that is incomplete or badly named never stops the others: it is returned as refused.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from bankdb.datasets.splits import EXTENSIONS, training_files
from bankdb.errors import (
    AdapterError,
    DatasetError,
    ParameterError,
    SourceError,
    one_line,
    printable,
)
from bankdb.patterns.bounded import matches
from bankdb.records import Pair, PairReference, RefusedPair, is_hub_reference
from bankdb.sources.adapter_files import local_adapter
from bankdb.sources.manifest import LAYOUT, in_manifest

_LONGEST_NAME = 200

_A = TypeVar("_A")
_B = TypeVar("_B")
Found = tuple[list[PairReference], list[RefusedPair]]


def check_name(name: str) -> None:
    """Check that a pair's name can be the name of a folder on any machine.

    Raises
    ------
    SourceError
        When it cannot.
    """
    problem = None
    if not name:
        problem = "is empty"
    elif not name.isprintable():
        problem = "has control or invisible characters"
    elif len(name.encode("utf-8")) > _LONGEST_NAME:
        problem = f"is longer than {_LONGEST_NAME} bytes"
    elif "/" in name or "\\" in name:
        problem = "has a slash or backslash"
    elif name[0] in ".-":
        problem = f"begins with {name[0]!r}"
    elif name != name.strip():
        problem = "begins or ends with a space"
    elif not unicodedata.is_normalized("NFC", name):
        problem = "is not in Unicode's composed form (NFC), so that two names could look alike"
    if problem:
        raise SourceError(f"the name {printable(name)[:80]!r} {problem}; give the pair another name")


def name_key(name: str) -> str:
    """What two names share that would be one folder where file names ignore case."""
    return unicodedata.normalize("NFC", name.casefold())


def check_case(references: Iterable[PairReference], present: Iterable[str]) -> Found:
    """Refuse names that differ only in case from one that is in the bank, as two of one ingest are."""
    names = {name_key(name): name for name in present}
    found: Found = ([], [])
    for reference in references:
        other = names.get(name_key(reference.name), reference.name)
        if other == reference.name:
            found[0].append(reference)
        else:
            reason = f"the name differs from {other!r} in the bank only in case; give it another name"
            found[1].append(RefusedPair(reference.name, reason))
    return found


def uses_hub(reference: PairReference) -> bool:
    """Whether any side of a pair is on the hub."""
    return is_hub_reference(reference.adapter) or is_hub_reference(reference.dataset)


def find_references(source: Path, *, group_pattern: str | None = None) -> Found:
    """Find the pairs that a folder or a manifest names; nothing of them is read yet.

    Parameters
    ----------
    source
        A folder with `datasets/` and `adapters/`, or a manifest file (`.csv` or `.jsonl`) with the
        columns name, adapter, dataset and, if wanted, group and licence. Relative paths in a manifest
        are relative to its folder; `hub:OWNER/NAME[@REVISION]` is on the hub.
    group_pattern
        Regular expression whose first group, found in the name, is the pair's group; a group that the
        manifest states comes first.

    Returns
    -------
    The pairs, in the order of the manifest or sorted by name, and those refused with their reasons.

    Raises
    ------
    SourceError
        When `source` as a whole is not of the expected layout.
    ParameterError
        When `group_pattern` is no regular expression with a group.
    """
    source = Path(source)
    _groups(group_pattern, ())
    if os.path.isdir(source):
        candidates = _in_folder(source)
    elif os.path.isfile(source):
        candidates = in_manifest(source)
    else:
        raise SourceError(f"{source}: not found; {LAYOUT}")
    references, refused = _screened(candidates, group_pattern)
    if not references and not refused:
        raise SourceError(f"{source}: no pairs in it; {LAYOUT}")
    return references, refused


def screen_references(references: Iterable[PairReference], *, group_pattern: str | None = None) -> Found:
    """Check names across several sources, as `find_references` does within one.

    Returns
    -------
    The pairs, with groups from their names where they have none, and those refused with their reasons.

    Raises
    ------
    ParameterError
        When `group_pattern` is no regular expression with a group.
    """
    return _screened(references, group_pattern)


def _screened(candidates: Iterable[PairReference | RefusedPair], group_pattern: str | None) -> Found:
    references: list[PairReference] = []
    refused: list[RefusedPair] = []
    taken: dict[str, str] = {}
    for candidate in candidates:
        checked = candidate if isinstance(candidate, RefusedPair) else _checked(candidate, taken)
        if isinstance(checked, RefusedPair):
            refused.append(checked)
        else:
            references.append(checked)
    groups = _groups(group_pattern, tuple(one.name for one in references if one.group is None))
    return [_grouped(one, groups) for one in references], refused


def groups_in_names(names: Iterable[str], group_pattern: str) -> dict[str, str]:
    """Return the groups that a regular expression finds in names, as `find_references` does; of others none.

    Raises
    ------
    ParameterError
        It is no regular expression with a group.
    """
    return _groups(group_pattern, tuple(names))


def resolve(reference: PairReference) -> Pair:
    """Locate the files of a pair that is on local disk.

    Raises
    ------
    SourceError
        When a side is on the hub: those are for `bankdb.sources.hub`.
    AdapterError, DatasetError
        When a side is missing or not of the expected layout.
    """
    if uses_hub(reference):
        raise SourceError(f"{reference.name}: is on the hub; it must be fetched first")
    adapter, dataset = both_sides(
        lambda: local_adapter(reference.adapter), lambda: local_dataset(reference.dataset)
    )
    return Pair(
        name=reference.name,
        adapter=adapter.path,
        dataset=dataset,
        adapter_source=str(adapter.path),
        dataset_source=os.path.abspath(reference.dataset),
        group=reference.group,
        licence=reference.licence,
        notes=adapter.notes,
    )


def both_sides(adapter: Callable[[], _A], dataset: Callable[[], _B]) -> tuple[_A, _B]:
    """Return what two functions find of the sides of a pair; what is wrong with both is one error."""
    try:
        found = adapter()
    except (AdapterError, DatasetError, SourceError) as error:
        try:
            dataset()
        except (AdapterError, DatasetError, SourceError) as other:
            if str(other) != str(error):
                raise type(error)(f"{error}; and {other}") from error
        raise
    return found, dataset()


def local_dataset(text: str) -> tuple[Path, ...]:
    """Absolute paths of a dataset's training files.

    Raises
    ------
    DatasetError
        When none is given, or there is no single, whole training split.
    """
    if not text:
        raise DatasetError("no dataset is given; expected a file or folder")
    return training_files(Path(os.path.abspath(text)))


def _groups(group_pattern: str | None, names: tuple[str, ...]) -> dict[str, str]:
    """Return the group of each name in which the pattern is found."""
    if group_pattern is None:
        return {}
    found = matches(group_pattern, "search", 1, names)
    if isinstance(found, str):
        raise ParameterError(
            f"group pattern {one_line(repr(group_pattern), 80)} {found}; give another one, such as '^([^_]+)_'"
        )
    return {name: group for name, group in zip(names, found, strict=True) if group}


def _grouped(reference: PairReference, groups: Mapping[str, str]) -> PairReference:
    if reference.group is not None:
        return reference
    return replace(reference, group=groups.get(reference.name))


def _checked(reference: PairReference, taken: dict[str, str]) -> PairReference | RefusedPair:
    """Refuse a bad name, and the second of two that would be one folder where file names ignore case."""
    try:
        check_name(reference.name)
    except SourceError as error:
        return RefusedPair(printable(reference.name)[:80], str(error))
    key = name_key(reference.name)
    if key in taken:
        first = taken[key]
        how = "is there twice" if first == reference.name else f"differs from {first!r} only in case"
        return RefusedPair(reference.name, f"the name {how}; give the second another name")
    taken[key] = reference.name
    return reference


def _in_folder(source: Path) -> Iterator[PairReference | RefusedPair]:
    for part in ("datasets", "adapters"):
        if not os.path.isdir(source / part):
            raise SourceError(f"{source}: has no folder {part}/; {LAYOUT}")
    adapters = {path.name for path in _entries(source / "adapters") if os.path.isdir(path)}
    datasets: dict[str, list[Path]] = {}
    unread: list[str] = []
    for path in _entries(source / "datasets"):
        if os.path.isdir(path):
            datasets.setdefault(path.name, []).append(path)
        elif path.suffix.lower() in EXTENSIONS:
            datasets.setdefault(path.stem, []).append(path)
        else:
            unread.append(path.name)
    for name in sorted(adapters | datasets.keys()):
        there = datasets.get(name, [])
        if name in adapters and len(there) == 1:
            adapter = os.path.abspath(source / "adapters" / name)
            yield PairReference(name, adapter, os.path.abspath(there[0]))
            continue
        if not there:
            reason = _no_dataset(source, name, unread)
        elif name not in adapters:
            reason = f"no adapter: expected a folder adapters/{name}/ in {source}; add it"
        else:
            found = ", ".join(path.name for path in there)
            reason = f"more than one dataset: {found} in {source / 'datasets'}; keep one"
        yield RefusedPair(printable(name), printable(reason))


def _no_dataset(source: Path, name: str, unread: list[str]) -> str:
    alike = [other for other in unread if other.startswith(f"{name}.")]
    found = f"; found {alike[0]}, which is of no format that is read" if alike else "; add it"
    return (
        f"no dataset: expected a folder {name}/ or a file {name}.jsonl, .json, .csv or .parquet "
        f"in {source / 'datasets'}{found}"
    )


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise SourceError(f"{folder}: cannot be listed: {error.strerror}; check its permissions") from error
