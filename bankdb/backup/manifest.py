"""What a backup says of itself: whose it is, which rows it has, and which of its files are the catalogue's."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bankdb.arrays.durable import read_file, write_file
from bankdb.errors import BankFormatError, BankNotFoundError
from bankdb.strict_json import parse_object

MANIFEST = "backup.json"
# The same before all that it lists is there.
UNFINISHED = ".backup.json.unfinished"
ROWS, FILES = "adapters.zarr", "folder"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class KeptRow:
    """A row of the bank that a catalogue calls ready.

    Attributes
    ----------
    row
        Its number, which is never given again.
    name
        The adapter's.
    sha256
        Of its values, little-endian float32.
    """

    row: int
    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """A backup's list.

    Attributes
    ----------
    identity
        The bank's.
    created
        When, in UTC.
    catalogue, catalogue_sha256
        The file of SQLite's that holds every record, and its hash.
    next_row
        Row numbers below it were given.
    parameters
        Columns of a row; None where the bank has no adapters yet.
    owner
        The mark of the catalogue on the rows.
    arrays
        Whether the rows are here too.
    rows
        Those that the catalogue calls ready.
    files
        The bank's other files, such as its tokenizer's, by their names from its folder on, with their sha256.
    """

    identity: str
    created: str
    catalogue: str
    catalogue_sha256: str
    next_row: int
    parameters: int | None
    owner: str | None
    arrays: bool
    rows: tuple[KeptRow, ...]
    files: dict[str, str]

    def write(self, folder: Path) -> None:
        """Write it, whole and durably: from then on the backup is this one."""
        text = json.dumps({"format": _FORMAT, **asdict(self)}, indent=1)
        write_file(folder / MANIFEST, text.encode())


def read_manifest(folder: Path) -> Manifest:
    """Return a backup's list.

    Raises
    ------
    BankNotFoundError
        There is no backup, or one that was not finished.
    BankFormatError
        The list cannot be understood.
    """
    file = folder / MANIFEST
    data = read_file(file)
    if data is None:
        what = "a backup that was not finished" if (folder / UNFINISHED).exists() else "no backup"
        raise BankNotFoundError(f"{folder}: {what}; expected a folder that `bank backup` has finished")
    try:
        content = parse_object(data.decode())
        if content.pop("format", None) != _FORMAT:
            raise ValueError(f"expected format {_FORMAT}; another version of lora-bank may read it")
        rows = tuple(
            KeptRow(int(one["row"]), str(one["name"]), str(one["sha256"])) for one in content.pop("rows")
        )
        return _checked(Manifest(rows=rows, **content))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BankFormatError(
            f"{file}: does not say what the backup holds ({error}); take another backup"
        ) from error


def _checked(manifest: Manifest) -> Manifest:
    """Return it, if its numbers are numbers and no name in it leads out of the backup's folder. Raises ValueError."""
    if type(manifest.next_row) is not int or type(manifest.parameters) not in (int, type(None)):
        raise ValueError(
            f"next_row {manifest.next_row!r} and parameters {manifest.parameters!r} should be numbers"
        )
    for name in (manifest.catalogue, *manifest.files):
        path = Path(name)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise ValueError(f"the name {name!r} leads elsewhere")
    return manifest


def file_sha256(file: Path) -> str:
    """Return the sha256 of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def unfinished_of(folder: Path) -> dict[str, Any]:
    """Return whose unfinished backup is in a folder; empty where there is none."""
    data = read_file(folder / UNFINISHED)
    try:
        return {} if data is None else parse_object(data.decode())
    except ValueError:
        return {}
