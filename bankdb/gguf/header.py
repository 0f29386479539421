"""The header of a GGUF file: its values, and the shape of each tensor; no tensor is read.

The package `gguf` maps the whole file and makes objects of every token of the vocabulary; this reads a stranger's file
in bounded time and memory, and keeps what is asked for. Layout: `docs/gguf.md` of ggml's repository, versions 2 and 3.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from bankdb.errors import GgufError, one_line

_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_MOST_KEYS, _MOST_TENSORS, _MOST_DIMENSIONS = 65_536, 65_536, 4
_LONGEST_NAME, _LONGEST_TEXT = 1024, 1 << 16
# The largest vocabularies have 300,000 tokens, in three arrays.
_MOST_TEXTS, _MOST_HEADER_BYTES = 4_000_000, 512 << 20
_KEPT = 4096  # elements of an array of numbers: one a layer
_STRING, _ARRAY = 8, 9
_NUMBERS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_ADVICE = "copy the file again"


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a GGUF file says before its tensors.

    Attributes
    ----------
    values
        Numbers, texts, and arrays of up to 4,096 numbers, by key; other arrays are left out.
    shapes
        Of each tensor, rows first, as NumPy has it.
    """

    values: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]


def read_gguf(path: Path) -> GgufHeader:
    """Read the header of a GGUF file.

    Raises
    ------
    GgufError
        It is none, or is damaged, or larger than that of any model.
    """
    try:
        with path.open("rb") as file:
            return _Reader(file, os.fstat(file.fileno()).st_size, path).header()
    except OSError as error:
        raise GgufError(
            f"{path}: cannot be read: {error.strerror}; check the path and its permissions"
        ) from error


class _Reader:
    """Reads on through a file, which never gives more than it has."""

    def __init__(self, file: BinaryIO, size: int, path: Path) -> None:
        self._file, self._path = file, path
        self._left = min(size, _MOST_HEADER_BYTES)
        self._texts = 0

    def header(self) -> GgufHeader:
        magic = self._file.read(len(_MAGIC))
        if magic != _MAGIC:
            raise self._refused(f"a GGUF file was expected, one that begins with {magic!r} found")
        version = self._number("<I")
        if version not in _VERSIONS:
            known = " or ".join(map(str, _VERSIONS))
            raise self._refused(
                f"version {known} of GGUF was expected, with the lowest byte first, {version} found; convert the model "
                "with a current llama.cpp"
            )
        tensors, keys = self._count(_MOST_TENSORS, "tensors"), self._count(_MOST_KEYS, "keys")
        values = {}
        for _ in range(keys):
            key = self._text(_LONGEST_NAME)
            value = self._value(self._number("<I"))
            if value is not None:
                values[key] = value
        shapes = {}
        for _ in range(tensors):
            name = self._text(_LONGEST_NAME)
            dimensions = self._number("<I")
            if not 0 < dimensions <= _MOST_DIMENSIONS:
                raise self._refused(
                    f"1 to {_MOST_DIMENSIONS} dimensions were expected of a tensor, {dimensions} found"
                )
            shapes[name] = tuple(reversed([self._number("<Q") for _ in range(dimensions)]))
            self._take(12)  # kind of its numbers, and where they are
        return GgufHeader(values, shapes)

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._text(_LONGEST_TEXT, cut=True)
        if kind == _ARRAY:
            return self._array(self._number("<I"), self._number("<Q"))
        if kind not in _NUMBERS:
            raise self._refused(f"a kind of value that GGUF has was expected, {kind} found")
        return self._number(_NUMBERS[kind])

    def _array(self, kind: int, length: int) -> list[Any] | None:
        if kind == _STRING:
            self._texts += length
            if self._texts > _MOST_TEXTS:
                raise self._refused(f"at most {_MOST_TEXTS:,} texts were expected, {self._texts:,} found")
            for _ in range(length):
                self._skip(self._number("<Q"))
            return None
        if kind not in _NUMBERS:
            raise self._refused(f"an array of numbers or texts was expected, one of kind {kind} found")
        size = struct.calcsize(_NUMBERS[kind])
        if length > _KEPT:
            self._skip(size * length)
            return None
        return [self._number(_NUMBERS[kind]) for _ in range(length)]

    def _count(self, most: int, what: str) -> int:
        number = int(self._number("<Q"))
        if number > most:
            raise self._refused(f"at most {most:,} {what} were expected, {number:,} found")
        return number

    def _text(self, longest: int, cut: bool = False) -> str:
        """Return a text; of one that is too long nothing where it may be cut, as a chat template is."""
        length = self._number("<Q")
        if length > longest:
            if not cut:
                raise self._refused(f"a name of at most {longest} bytes was expected, one of {length} found")
            self._skip(length)
            return ""
        return self._take(length).decode("utf-8", "replace")

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _take(self, length: int) -> bytes:
        self._spend(length)
        found = self._file.read(length)
        if len(found) != length:
            raise self._refused("it ends in its header")
        return found

    def _skip(self, length: int) -> None:
        self._spend(length)
        self._file.seek(length, os.SEEK_CUR)

    def _spend(self, length: int) -> None:
        if length > self._left:
            raise self._refused(
                f"it ends in its header, or that has more than {_MOST_HEADER_BYTES >> 20} MiB"
            )
        self._left -= length

    def _refused(self, why: str) -> GgufError:
        return GgufError(f"{self._path}: {one_line(why)}; {_ADVICE}")
