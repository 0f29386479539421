"""Files of text read no further than the memory allows, with words for those that cannot be read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from bankdb.datasets.columns import Place
from bankdb.datasets.files.compressed import opened
from bankdb.errors import DatasetError, PlanError

_AT_ONCE = 1 << 20


@contextlib.contextmanager
def readable(file: Path) -> Iterator[None]:
    """Say of a file that the system refuses what to look at."""
    try:
        yield
    except OSError as error:
        raise DatasetError(f"{file}: cannot be read: {error.strerror}; check its permissions") from error


def too_large(file: Path, size: str, most: int, memory: int, advice: str) -> PlanError:
    """Return the error for a file that takes more than its share of the memory."""
    return PlanError(
        f"{file}: has {size} bytes, expected at most {most:,} where {memory >> 20} MiB may be used; "
        f"{advice}, or give more with --memory"
    )


def whole(file: Path, memory: int, share: int, advice: str) -> bytes:
    """Read all of a file, unpacked. Raises PlanError where it takes more than a share of the memory."""
    size, most = file.stat().st_size, memory // share
    if size > most:
        raise too_large(file, f"{size:,}", most, memory, advice)
    parts, left = [], most
    with readable(file), opened(file, memory) as stream:
        while part := stream.read(min(left + 1, _AT_ONCE)):
            parts.append(part)
            left -= len(part)
            if left < 0:
                raise too_large(file, "unpacked more", most, memory, advice)
    return b"".join(parts)


def decoded(raw: bytes, place: Place | Path) -> str:
    """Return the text of a file, or of its first line, without the mark of the byte order."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # Counted in what the error holds, which lacks the byte order mark.
        line = error.object.count(b"\n", 0, error.start) + 1
        where = f"{place}, line {line}" if isinstance(place, Path) else f"{place}"
        raise DatasetError(f"{where}: not UTF-8; save the file as UTF-8") from error


def later(raw: bytes, place: Place) -> str:
    """Return the text of another line."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{place}: not UTF-8; save the file as UTF-8") from error
