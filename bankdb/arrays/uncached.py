"""Ranges of large files read past the kernel's page cache.

What is read once, and is as large as the memory, gains nothing from that cache and pays for it: the kernel
takes the time of a core to find pages, copy into them and give them up again, while all cores multiply.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from bankdb.arrays.remote import Location, RemotePath, object_size, read_ranges

# Of the offset, the length and the memory of such a read, on every disk that Linux knows.
_ALIGNMENT = 4096
# Pieces of an object store that are asked for at once: 16 MiB, as of panels.
_REQUESTS = 32


class UncachedReader:
    """Reads ranges of files straight from the disk into one buffer; for one thread.

    Where the system or the file system has no such reads, they go through the cache.
    """

    def __init__(self) -> None:
        self._buffer = mmap.mmap(-1, _ALIGNMENT)

    def read(self, file: Path, offset: int, length: int) -> memoryview:
        """Return the bytes of a range, fewer at the file's end; valid until the next call.

        Raises
        ------
        OSError
            The file cannot be read.
        """
        first = offset // _ALIGNMENT * _ALIGNMENT
        last = -(-(offset + length) // _ALIGNMENT) * _ALIGNMENT
        buffer = self._room(last - first)
        descriptor = _open(file)
        try:
            filled = _fill(descriptor, buffer, first)
        finally:
            os.close(descriptor)
        return buffer[offset - first : min(filled, offset + length - first)]

    def _room(self, size: int) -> memoryview:
        if len(self._buffer) < size:
            self._buffer = mmap.mmap(-1, size)  # the system's own memory begins on a page
        return memoryview(self._buffer)[:size]


def _open(file: Path) -> int:
    try:
        return os.open(file, os.O_RDONLY | getattr(os, "O_DIRECT", 0))
    except OSError:
        # Some file systems refuse the flag; whatever else is wrong is raised here.
        return os.open(file, os.O_RDONLY)


def _fill(descriptor: int, buffer: memoryview, first: int) -> int:
    """Fill the buffer from offset `first` of the file on; return the bytes that there were."""
    filled = 0
    while filled < len(buffer):
        count = os.preadv(descriptor, [buffer[filled:]], first + filled)
        filled += count
        if not count or filled % _ALIGNMENT:  # the file's end
            break
    return filled


# -- how fast a storage is -----------------------------------------------------------------------------


def cold_size(place: Location) -> int:
    """Return the bytes of a file, which the kernel is asked to forget so that the disk is read, or of an object."""
    if isinstance(place, RemotePath):
        return object_size(place)
    if hasattr(os, "posix_fadvise"):
        descriptor = os.open(place, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    return place.stat().st_size


def read_pieces(places: Sequence[Location], start: int, stop: int) -> Iterator[int]:
    """Read a range of each of some shards; yield the bytes of files one by one, and of objects many at once."""
    for file in (place for place in places if isinstance(place, Path)):
        yield _read_piece(file, start, stop - start)
    objects = [place for place in places if isinstance(place, RemotePath)]
    for first in range(0, len(objects), _REQUESTS):
        answers = read_ranges([(item, start, stop) for item in objects[first : first + _REQUESTS]])
        yield sum(len(answer or b"") for answer in answers)


def _read_piece(file: Path, start: int, length: int) -> int:
    """Read a shard's index, at its end, and a piece of it; return the bytes of the piece."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.pread(descriptor, 1024, max(0, os.fstat(descriptor).st_size - 1024))
        return len(os.pread(descriptor, length, start))
    finally:
        os.close(descriptor)
