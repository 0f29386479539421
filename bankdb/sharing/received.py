"""A shared bank as it comes in: its records read and checked, and each file held against its hash."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bankdb.arrays.adapter_store import row_sha256
from bankdb.errors import AdapterError, BankFormatError, one_line
from bankdb.peft.layout import AdapterLayout
from bankdb.sharing.form import (
    ABOUT,
    AGAIN,
    BASE_CONFIG,
    CATALOGUE,
    CONFIG,
    COUNTS,
    MOST_BYTES,
    MOST_TOKENIZER_BYTES,
    SUMS,
    TOKENIZER,
    WEIGHTS,
    About,
    SharedAdapter,
    read_about,
    read_catalogue,
    read_sums,
)
from bankdb.sharing.places.opened import Shared, file_sha256

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bankdb.peft.weights import SourceAdapter

# Of a safetensors header, and of a configuration: what readers of them take at the most.
_MOST_HEADER, _MOST_CONFIG, _MOST_COUNTS_HEADER = 32 << 20, 16 << 20, 4096


@dataclass(frozen=True, slots=True)
class SharedBank:
    """A shared bank whose records were checked; its files are fetched one by one, each held against its hash."""

    place: Shared
    about: About
    adapters: tuple[SharedAdapter, ...]
    sums: dict[str, str]

    def take(self, path: str, target: Path, most: int) -> Path:
        """Copy a file that is what was shared; one that is there already is not copied again.

        Raises
        ------
        BankFormatError
            It is missing, or not what was shared.
        """
        expected = self.sums.get(path)
        if expected is None:
            raise BankFormatError(f"{self.place.where}: {path}: is not in {SUMS}; {AGAIN}")
        if file_sha256(target) == expected:
            return target
        found = self.place.fetch(path, target, most)
        if found != expected:
            target.unlink()
            raise BankFormatError(
                f"{self.place.where}: {path}: SHA-256 {expected[:12]} was expected, {found[:12]} found: it was changed "
                f"or damaged; {AGAIN}"
            )
        return target


def read_shared(place: Shared, folder: Path) -> SharedBank:
    """Read the records of a shared bank.

    Parameters
    ----------
    folder
        Where files are put meanwhile.

    Raises
    ------
    BankFormatError
        It is none, or not the whole of one; or a record is not what it should be.
    SourceError
        It cannot be reached.
    """
    if not place.has(SUMS):
        what = "its push was interrupted, run it again" if place.has(ABOUT) else "no shared bank is there"
        raise BankFormatError(f"{place.where}: {SUMS} was expected, none found: {what}")
    place.fetch(SUMS, folder / SUMS, MOST_BYTES[SUMS])
    sums = read_sums((folder / SUMS).read_bytes(), place.where)
    bare = SharedBank(place, None, (), sums)  # type: ignore[arg-type]
    texts = [bare.take(name, folder / name, MOST_BYTES[name]).read_bytes() for name in (ABOUT, CATALOGUE)]
    about = read_about(texts[0], place.where)
    adapters = read_catalogue(texts[1], about, place.where)
    missing = [one.name for one in adapters if f"{one.folder}/{WEIGHTS}" not in sums]
    if missing:
        raise BankFormatError(f"{place.where}: {SUMS}: names no weights of {missing[0]!r}; {AGAIN}")
    return SharedBank(place, about, adapters, sums)


def take_tokenizer(shared: SharedBank, folder: Path) -> Path:
    """Copy the files of the tokenizer, and the base model's configuration as `config.json`; return their folder.

    Raises
    ------
    BankFormatError
        As `SharedBank.take`.
    """
    target = folder / TOKENIZER
    for path in shared.sums:
        name = path.removeprefix(f"{TOKENIZER}/")
        if name != path and "/" not in name and "\\" not in name and not name.startswith("."):
            shared.take(path, target / name, MOST_TOKENIZER_BYTES)
    if BASE_CONFIG in shared.sums and f"{TOKENIZER}/config.json" not in shared.sums:
        shared.take(BASE_CONFIG, target / "config.json", MOST_BYTES[BASE_CONFIG])
    return target


def take_adapter(shared: SharedBank, one: SharedAdapter, folder: Path) -> None:
    """Copy the files of an adapter. Raises BankFormatError as `SharedBank.take`."""
    about = shared.about
    most = {
        CONFIG: _MOST_CONFIG,
        WEIGHTS: 8 + _MOST_HEADER + 4 * about.parameters,
        COUNTS: _MOST_COUNTS_HEADER + 8 * about.vocabulary,
    }
    for name, size in most.items():
        shared.take(f"{one.folder}/{name}", folder / name, size)


@dataclass(frozen=True, slots=True)
class ReceivedAdapter:
    """An adapter that is what its record says, with the counts of its dataset's tokens: uint32, ids ascending."""

    record: SharedAdapter
    adapter: SourceAdapter
    ids: NDArray[np.uint32]
    counts: NDArray[np.uint32]


def read_adapter(
    shared: SharedBank,
    one: SharedAdapter,
    folder: Path,
    layout: AdapterLayout,
    base_models: Sequence[str],
    revision: str | None,
) -> ReceivedAdapter:
    """Read the files of an adapter, and compare all that they say with its record and the bank.

    Parameters
    ----------
    layout, base_models, revision
        What the bank that takes it is of.

    Raises
    ------
    AdapterError
        It is refused as an adapter.
    BankFormatError
        It is not what its record says.
    """
    from bankdb.peft.checks import check_range, other_revision
    from bankdb.peft.weights import load_adapter

    try:
        # What was fetched was held against its hash then.
        known = shared.sums[f"{one.folder}/{WEIGHTS}"]
        adapter = load_adapter(folder, expected=layout, base_models=base_models, sha256=known)
        if adapter.config.revision != revision:
            raise AdapterError(other_revision(one.name, revision, adapter.config.revision))
        check_range(adapter, folder)
    except AdapterError as error:
        # Which file of the place it was; where that was copied to is nobody's concern.
        raise AdapterError(str(error).replace(str(folder), one.folder)) from error
    config = adapter.config
    said = (one.row_sha256, one.dtype, one.rank, one.alpha, one.use_rslora, one.scaling)
    own = (
        row_sha256(adapter.vector),
        adapter.dtype,
        *(config.rank, config.alpha, config.use_rslora, config.scaling),
    )
    if said != own:
        names = ("row_sha256", "dtype", "rank", "alpha", "use_rslora", "scaling")
        key, a, b = next(item for item in zip(names, said, own, strict=True) if item[1] != item[2])
        raise BankFormatError(f"{one.folder}: {key} {a} was expected by {CATALOGUE}, {b} found; {AGAIN}")
    ids, counts = _counts(folder / COUNTS, one, shared.about.vocabulary)
    return ReceivedAdapter(one, adapter, ids, counts)


def _counts(path: Path, one: SharedAdapter, vocabulary: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(path.read_bytes())
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise BankFormatError(f"{one.folder}/{COUNTS}: cannot be read ({one_line(error)}); {AGAIN}") from None
    ids, counts = (tensors.get(name, np.empty(0)) for name in ("ids", "counts"))
    whole = (
        tensors.keys() == {"ids", "counts"}
        and ids.dtype == counts.dtype == np.uint32
        and ids.ndim == counts.ndim == 1
        and len(ids) == len(counts) > 0
        and bool(np.all(ids[1:] > ids[:-1]))
        and int(ids[-1]) < vocabulary
        and bool(np.all(counts > 0))
        and int(counts.sum(dtype=np.uint64)) == one.tokens
    )
    if not whole:
        raise BankFormatError(
            f"{one.folder}/{COUNTS}: {one.tokens:,} tokens with ascending ids below {vocabulary:,} were expected, "
            f"others found; {AGAIN}"
        )
    return ids, counts
