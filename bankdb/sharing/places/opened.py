"""A shared bank opened for reading, from a folder or a tar: its files by path, copied out one by one within bounds.

Nothing is unpacked: a file is read where it lies, and only those that the form names are.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol, cast

from bankdb.errors import BankFormatError, SourceError, printable
from bankdb.sharing.form import AGAIN, SUMS

_PIECE = 1 << 20
# Of the names in a tar: its longest header, and how many files. A bank of 20,000 adapters has 60,000.
_LONGEST_HEADER, _MOST_MEMBERS = 1 << 20, 1_000_000


class Shared(Protocol):
    """A place to read a shared bank from."""

    where: str
    """How messages name it."""
    side_by_side: int
    """How many files are worth fetching at a time."""

    def has(self, path: str) -> bool:
        """Whether a file is there."""

    def fetch(self, path: str, target: Path, most: int) -> str:
        """Copy a file of at most so many bytes; return its SHA-256.

        Raises
        ------
        BankFormatError, SourceError
            It is not there, no file, too large, or cannot be read.
        """

    def close(self) -> None:
        """Let go of what is open."""


class SharedFolder:
    """A shared bank in a folder. No link in it is followed."""

    side_by_side = 1

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise SourceError(
                f"{printable(str(folder))}: no such folder; give OWNER/NAME, a folder or FILE.tar"
            )
        self._folder, self.where = folder, str(folder)

    def has(self, path: str) -> bool:
        """Whether a file is there."""
        return os.path.lexists(self._folder / path)

    def fetch(self, path: str, target: Path, most: int) -> str:
        """Copy a file: see `Shared`."""
        descriptor = self._open(path)
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise BankFormatError(
                    f"{self.where}: {path}: a file was expected, something else found; {AGAIN}"
                )
            return copied(file, found.st_size, target, most, f"{self.where}: {path}")

    def _open(self, path: str) -> int:
        """Open a file from folder to folder, so that nothing on the way is a link."""
        folders, flags = PurePosixPath(path).parts, os.O_NOFOLLOW | os.O_CLOEXEC
        at = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in folders[:-1]:
                inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | flags, dir_fd=at)
                os.close(at)
                at = inner
            # To open a named pipe would wait for ever without it.
            return os.open(folders[-1], os.O_RDONLY | os.O_NONBLOCK | flags, dir_fd=at)
        except OSError as error:
            what = (
                "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
            )
            raise BankFormatError(f"{self.where}: {path}: {what}; {AGAIN}") from None
        finally:
            os.close(at)

    def close(self) -> None:
        """Nothing is open."""


class SharedTar:
    """A shared bank in a tar, which may hold it in a folder. Its names are read once; files are read where they lie."""

    side_by_side = 1

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise SourceError(f"{path}: cannot be read ({error.strerror}); give FILE.tar") from None
        try:
            if not stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
                raise SourceError(f"{path}: a file was expected, something else found")
            self._members = _members(self._file, self.where)
        except BaseException:
            self._file.close()
            raise
        self._below = self._found_below()

    def _found_below(self) -> str:
        depths = [name for name in self._members if PurePosixPath(name).name == SUMS]
        if not depths:
            raise BankFormatError(
                f"{self.where}: no {SUMS} in it: no shared bank, or not the whole of one; {AGAIN}"
            )
        return min(depths, key=len).removesuffix(SUMS)

    def has(self, path: str) -> bool:
        """Whether a file is there."""
        return f"{self._below}{path}" in self._members

    def fetch(self, path: str, target: Path, most: int) -> str:
        """Copy a file: see `Shared`."""
        place = self._members.get(f"{self._below}{path}")
        if place is None:
            raise BankFormatError(f"{self.where}: {path}: is missing; {AGAIN}")
        start, size = place
        self._file.seek(start)
        return copied(self._file, size, target, most, f"{self.where}: {path}")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class _Headers:
    """A file whose reader takes headers alone: one that claims to be longer than any is refused, not read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.tell, self.seek = file.tell, file.seek

    def read(self, size: int = -1) -> bytes:
        """Read so many bytes."""
        if not 0 <= size <= _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of at most {_LONGEST_HEADER} bytes was expected")
        return self._file.read(size)


def _members(file: BinaryIO, where: str) -> dict[str, tuple[int, int]]:
    """Return where each file of a tar begins, and its bytes, by name.

    Raises
    ------
    BankFormatError
        It is no tar; or it holds what no shared bank does: a link, a device, a name that leads out of it.
    """
    found: dict[str, tuple[int, int]] = {}
    whole = os.fstat(file.fileno()).st_size
    try:
        with tarfile.open(fileobj=cast(BinaryIO, _Headers(file)), mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # else all are kept
                _check_member(member, found, whole)
                if not member.isdir():
                    found[_plain(member.name)] = (member.offset_data, member.size)
    except (tarfile.TarError, ValueError, OverflowError, OSError, EOFError, RecursionError) as error:
        reason = str(error) or "it ends too early"
        raise BankFormatError(
            f"{where}: no tar of a shared bank: {printable(reason)[:200]}; {AGAIN}"
        ) from None
    return found


def _plain(name: str) -> str:
    return name.removeprefix("./")


def _check_member(member: tarfile.TarInfo, found: dict[str, tuple[int, int]], whole: int) -> None:
    name = _plain(member.name)
    shown = printable(member.name)[:100]
    if len(found) >= _MOST_MEMBERS:
        raise ValueError(f"more than {_MOST_MEMBERS:,} files are in it")
    if member.name.startswith("/") or ".." in PurePosixPath(name).parts or "\\" in name:
        raise ValueError(f"the name {shown!r} leads out of it")
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE) or member.issparse():
        raise ValueError(f"{shown!r} is a link, a device or another thing than a file or folder")
    if name in found:
        raise ValueError(f"{shown!r} is in it twice")
    if not 0 <= member.size <= whole - member.offset_data:
        raise ValueError(f"{shown!r} is cut off: {member.size:,} bytes were expected")


def copied(file: BinaryIO, size: int, target: Path, most: int, what: str) -> str:
    """Copy so many bytes of an open file into one that appears whole; return their SHA-256.

    Raises
    ------
    BankFormatError
        There are more than `most`, or fewer than `size`.
    """
    if size > most:
        raise BankFormatError(f"{what}: at most {most:,} bytes were expected, {size:,} found; {AGAIN}")
    digest, left = hashlib.sha256(), size
    partial = target.with_name(f"{target.name}.partial")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with partial.open("wb") as out:
            while left:
                piece = file.read(min(_PIECE, left))
                if not piece:
                    raise BankFormatError(
                        f"{what}: {size:,} bytes were expected, {size - left:,} found; {AGAIN}"
                    )
                digest.update(piece)
                out.write(piece)
                left -= len(piece)
        partial.replace(target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()
    return digest.hexdigest()


def file_sha256(path: Path) -> str | None:
    """Return the SHA-256 of a file; None where there is none."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def closing(shared: Shared) -> Iterator[Shared]:
    """Close it in the end."""
    try:
        yield shared
    finally:
        shared.close()
