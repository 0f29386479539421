"""Files compressed with gzip or zstandard, read as they are unpacked, and never further than a file may unpack to."""

from __future__ import annotations

import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from bankdb.datasets.splits import format_of
from bankdb.errors import DatasetError, PlanError, one_line

STARTS = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd"}
NAMES = {".gz": "gzip", ".zst": "zstandard"}
EXPANSION = 100
"""How many times a file's size its texts may have, where they are more than what may be kept: a few bytes of Parquet or
of gzip can stand for terabytes, which nobody would tokenize to the end."""
_KEPT_SHARE = 4
_AT_ONCE = 1 << 17


class _Unpacked(io.RawIOBase):
    """What a file holds, unpacked. Raises DatasetError where it is damaged, PlanError where it is too much."""

    def __init__(self, file: Path, source: Any, most: int) -> None:
        self._file, self._source, self._read, self._most = file, source, 0, most

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            # As much as was asked for would be set aside before any of it is there.
            found: bytes = self._source.read(min(len(buffer), _AT_ONCE))
        except (OSError, EOFError, zlib.error, ValueError) as error:
            name = NAMES[format_of(self._file.name)[1]]
            raise DatasetError(
                f"{self._file}: not a whole file of {name}: {one_line(error)}; copy or download it again"
            ) from error
        self._read += len(found)
        if self._read > self._most:
            raise PlanError(
                f"{self._file}: unpacks to more than {self._most >> 20} MiB; unpack it first, or give more with "
                "--memory"
            )
        buffer[: len(found)] = found
        return len(found)

    def close(self) -> None:
        if not self.closed:
            self._source.close()
        super().close()


@contextlib.contextmanager
def opened(file: Path, memory: int, most: int | None = None) -> Iterator[BinaryIO]:
    """Open a file to be read as it was before it was compressed, if its name says that it is.

    Parameters
    ----------
    memory
        Bytes that reading may take.
    most
        Bytes that it may unpack to; if not given, a hundred times its size, or a quarter of the memory if that is more.

    Raises
    ------
    DatasetError, PlanError
        While it is read: it is not whole, or unpacks to more.
    """
    compression = format_of(file.name)[1]
    if not compression:
        with file.open("rb") as plain:
            yield plain
        return
    source: Any
    if compression == ".gz":
        source = gzip.open(file, "rb")  # noqa: SIM115
    else:
        import pyarrow as pa

        source = pa.CompressedInputStream(pa.OSFile(str(file)), "zstd")
    if most is None:
        most = max(memory // _KEPT_SHARE, EXPANSION * file.stat().st_size)
    with io.BufferedReader(_Unpacked(file, source, most), _AT_ONCE) as stream:
        yield stream


def check_start(file: Path, head: bytes) -> None:
    """Raise DatasetError unless a file whose first bytes are these is compressed as its name says, or not at all."""
    stated = format_of(file.name)[1]
    found = next((name for name, start in STARTS.items() if head.startswith(start)), "")
    if found and found != stated:
        raise DatasetError(
            f"{file}: is compressed with {NAMES[found]}; let its name end in {found}, or decompress it first"
        )
    if stated and not found:
        raise DatasetError(f"{file}: is not compressed with {NAMES[stated]}; rename it without {stated}")
