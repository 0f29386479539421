"""Where the parts of a bank are: its folder, its database, its arrays; `bank.json` in the folder says so.

A bank that keeps everything in its folder needs no such file: SQLite's `bank.db` and the arrays lie there.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import URL

from bankdb.arrays.durable import fsync_path
from bankdb.catalog.url import parse_database
from bankdb.errors import BankFormatError, ParameterError
from bankdb.strict_json import json_type, parse_object

LOCATION_FILE = "bank.json"
# The same file while it is written.
UNFINISHED_LOCATION_FILE = ".bank.json.partial"

_FORMAT = 1
_KEYS = ("database", "arrays", "identity")


@dataclass(frozen=True, slots=True)
class BankLocation:
    """Where a bank is.

    Attributes
    ----------
    folder
        The bank's folder: tokenizer and locks, and whatever is kept nowhere else.
    database
        URL of the PostgreSQL database; None for SQLite's `bank.db` in the folder.
    arrays
        URL of the folder that holds the arrays; None for the bank's own folder.
    identity
        The bank's identity, which its database must have too; None where no file states it.
    """

    folder: Path
    database: URL | None = None
    arrays: str | None = None
    identity: str | None = None

    @classmethod
    def of(cls, folder: Path) -> BankLocation:
        """Read where the bank in `folder` is.

        Raises
        ------
        BankFormatError
            `bank.json` is there and cannot be understood.
        """
        file = folder / LOCATION_FILE
        try:
            text = file.read_bytes().decode()
        except (FileNotFoundError, NotADirectoryError):
            return cls(folder)
        except (IsADirectoryError, UnicodeDecodeError) as error:
            raise _damaged(file, f"it is no text file ({error})") from error
        try:
            content = parse_object(text)
        except ValueError as error:
            raise _damaged(file, str(error)) from error
        return cls(folder, *_checked(file, content))

    def record(self) -> None:
        """Write `bank.json`, durably, in place of one that is there.

        Only its owner may read it if the database's URL has a password. A bank that keeps everything in its
        folder has no such file; one that is there goes.
        """
        if self == BankLocation(self.folder):
            (self.folder / LOCATION_FILE).unlink(missing_ok=True)
            return
        text = None if self.database is None else self.database.render_as_string(hide_password=False)
        content = {"format": _FORMAT, "database": text, "arrays": self.arrays, "identity": self.identity}
        unfinished = self.folder / UNFINISHED_LOCATION_FILE
        unfinished.unlink(missing_ok=True)
        secret = self.database is not None and self.database.password is not None
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if secret else 0o666)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self.folder / LOCATION_FILE)
        fsync_path(self.folder)

    @property
    def database_url(self) -> URL:
        """URL of the database, SQLite's too."""
        # Not as text, in which a `?` in the path would begin options.
        return self.database or URL.create("sqlite", database=str((self.folder / "bank.db").absolute()))


def _checked(file: Path, content: dict[str, Any]) -> tuple[URL | None, str | None, str | None]:
    version = content.pop("format", None)
    if version != _FORMAT:
        raise BankFormatError(
            f"{file}: expected format {_FORMAT}, found {version!r}: upgrade lora-bank, or restore the file"
        )
    unknown = sorted(content.keys() - set(_KEYS))
    if unknown:
        raise _damaged(file, f"the key {unknown[0]!r} is not known")
    for key in _KEYS:
        if not isinstance(content.get(key), str | None):
            raise _damaged(file, f"{key!r} should be a string or null, it is {json_type(content[key])}")
    database, arrays, identity = (content.get(key) for key in _KEYS)
    try:
        return None if database is None else parse_database(database), arrays, identity
    except ParameterError as error:
        raise _damaged(file, str(error)) from error


def _damaged(file: Path, reason: str) -> BankFormatError:
    return BankFormatError(f"{file}: does not say where the bank is: {reason}; restore it from a copy")
