"""What making a bank needs: a folder that is free for it, and its own copy of the tokenizer."""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bankdb.arrays.durable import fsync_path, is_empty
from bankdb.arrays.remote import Location, checked_place, located
from bankdb.arrays.zarr_arrays import ensure_group, group_attributes
from bankdb.catalog.catalog import Catalog
from bankdb.catalog.database import identity_in
from bankdb.catalog.locks import exclusive_lock
from bankdb.catalog.url import parse_database, shown_database
from bankdb.datasets.read import TEXT_RULE
from bankdb.errors import ConflictError, FileSystemError, TokenizerError
from bankdb.gguf.base_model import BASE_CONFIG, config_worth_keeping
from bankdb.storage.location import LOCATION_FILE, UNFINISHED_LOCATION_FILE, BankLocation

if TYPE_CHECKING:
    from bankdb.datasets.tokenizer import BankTokenizer

# What an interrupted `create` may have left.
_OWN_FILES = {
    "bank.db",
    "bank.db-journal",
    "bank.db-wal",
    "bank.db-shm",
    "tokenizer",
    BASE_CONFIG,
    ".ingest.lock",
    ".compute.lock",
    LOCATION_FILE,
    UNFINISHED_LOCATION_FILE,
}


def check_free(folder: Path) -> None:
    """Raise ConflictError unless a bank can be made in `folder`: nothing is there, or what a killed `init` left."""
    if folder.exists() and not folder.is_dir():
        raise ConflictError(f"{folder}: a file is in the way; choose another path with --bank")
    if not folder.is_dir():
        return
    strange = sorted(item.name for item in folder.iterdir() if item.name not in _OWN_FILES)
    if any(name == "adapters.zarr" or not name.endswith(".zarr") for name in strange):
        raise _not_empty(folder, "a bank with adapters" if "adapters.zarr" in strange else repr(strange[0]))
    _check_no_bank(folder)
    if strange:  # arrays that are made of adapters, without a catalogue
        raise _not_empty(folder, repr(strange[0]))


def _not_empty(folder: Path, what: str) -> ConflictError:
    return ConflictError(f"{folder}: not empty, holds {what}; choose another folder with --bank")


def _check_no_bank(folder: Path) -> None:
    """Raise ConflictError if a catalogue is there that has its bank's own record: a killed `init` may leave none."""
    location = BankLocation.of(folder)
    if location.database is None and not (folder / "bank.db").is_file():
        return
    present = identity_in(location.database_url)
    if present is not None and location.identity in {None, present}:  # else the database is another bank's
        raise ConflictError(f"{folder}: a bank is already here; use it, or choose another folder with --bank")


@contextlib.contextmanager
def making(location: BankLocation) -> Iterator[None]:
    """Be the only process that makes a bank in the folder; calls that come meanwhile wait.

    Where the folder's file system keeps no locks, a bank whose catalogue is on a server is made without.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(exclusive_lock(location.folder / ".ingest.lock", lambda: None))
        except FileSystemError:
            if location.database is None:
                raise
        yield


def check_places_free(location: BankLocation) -> None:
    """Raise ConflictError if the server's database, or the place of the arrays, is not the folder's and not empty."""
    check_arrays_free(location)
    if location.database is not None and identity_in(location.database_url) is not None:
        raise ConflictError(
            f"{shown_database(location.database)}: the database already holds a bank; "
            "use that bank's folder with --bank, or make a database for this one"
        )


def new_location(folder: Path, database: str | None, arrays: str | None) -> BankLocation:
    """Return where a bank that is made now will be.

    Where an interrupted `create` began in the folder, wherever the parts were to be then, it is the same bank: what
    that has marked as the bank's is taken again.

    Raises
    ------
    ParameterError
        One of the two is no URL for it.
    """
    if database is None and arrays is None:
        return BankLocation(folder)
    wanted = BankLocation(
        folder,
        None if database is None else parse_database(database),
        None if arrays is None else parse_arrays(arrays),
        uuid.uuid4().hex,
    )
    begun = BankLocation.of(folder).identity
    return wanted if begun is None else replace(wanted, identity=begun)


def record_bank(
    catalog: Catalog,
    location: BankLocation,
    tokenizer: BankTokenizer,
    base_model: str,
    aliases: Sequence[str],
) -> None:
    """Record in its database what the bank is, last: then it is one. Raises ConflictError if another was first."""
    catalog.create_bank(
        identity=location.identity,
        base_model=base_model,
        base_model_aliases=aliases,
        tokenizer_name=tokenizer.name,
        tokenizer_fingerprint=tokenizer.fingerprint,
        vocabulary=tokenizer.vocabulary,
        text_rule=TEXT_RULE,
    )


def save_tokenizer(tokenizer: BankTokenizer, folder: Path) -> None:
    """Copy a tokenizer's files into the bank, and load them again to see that they are the same tokenizer."""
    from bankdb.datasets.tokenizer import BankTokenizer

    if folder.is_dir():
        shutil.rmtree(folder)  # left by an interrupted `create`, maybe of another tokenizer
    tokenizer.save(folder)
    for item in (*folder.rglob("*"), folder):
        fsync_path(item)
    if BankTokenizer(folder, tokenizer.fingerprint).fingerprint != tokenizer.fingerprint:
        raise TokenizerError(
            f"{tokenizer.name}: loads as another tokenizer after it was saved to {folder}; "
            "save it with the installed transformers and pass that folder"
        )


def save_base_config(tokenizer: BankTokenizer, base_model: str, folder: Path) -> None:
    """Keep the base model's config.json where one is at hand: beside the tokenizer, or in the folder it is named by."""
    found = config_worth_keeping((str(tokenizer.folder), base_model))
    kept = folder / BASE_CONFIG
    kept.unlink(missing_ok=True)  # left by an interrupted `create`, maybe of another model
    if found is not None:
        kept.write_bytes(found)
        fsync_path(kept)


def parse_arrays(text: str) -> str:
    """Return the URL, or the absolute path, of the place that is to hold a bank's arrays.

    Raises
    ------
    ParameterError
        It names no place, or one of a kind that is not known here.
    """
    return str(checked_place(text))


def check_arrays_free(location: BankLocation) -> None:
    """Raise ConflictError unless nothing is where a new bank's arrays are to be."""
    if location.arrays is not None and _owner(located(location.arrays)) != location.identity:
        _check_empty(located(location.arrays))


def _check_empty(arrays: Location) -> None:
    if is_empty(arrays):
        return
    owner = _owner(arrays)
    what, advice = "is not empty", ""
    if owner:
        what, advice = f"holds the arrays of bank {owner}", ", or delete it if there is no such bank"
    raise ConflictError(
        f"{arrays}: expected an empty place for the bank's arrays, it {what}; choose another one{advice}"
    )


def claim_arrays(location: BankLocation) -> None:
    """Mark the place of the arrays as a bank's, where it is not the bank's folder: see `claim_place`."""
    if location.arrays is not None:
        claim_place(located(location.arrays), str(location.identity))


def claim_place(arrays: Location, identity: str) -> None:
    """Mark a place as this bank's, if it is not yet: the attribute `bank` of the zarr group there.

    Raises
    ------
    ConflictError
        Something else is there.
    """
    if _owner(arrays) == identity:
        return
    _check_empty(arrays)
    ensure_group(arrays, {"bank": identity})
    if _owner(arrays) != identity:  # of two that came so far together, one goes on
        _check_empty(arrays)


def _owner(arrays: Location) -> str | None:
    owner = (group_attributes(arrays) or {}).get("bank")
    return None if owner is None else str(owner)
