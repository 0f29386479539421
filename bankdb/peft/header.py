"""The header of a safetensors file: which tensor lies where, checked before a byte of data is read.

The `safetensors` package gives tensors but not the header's own bytes, without which a file cannot be
written again bit for bit; so the header (a JSON object with a fixed schema) is read here.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from bankdb.errors import AdapterError, listed, one_line
from bankdb.strict_json import parse_object

if TYPE_CHECKING:
    import numpy as np

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_MOST_HEADER_BYTES, _MOST_VALUES = 32 * 2**20, 2_000_000  # some 200,000 tensors; parsing them takes memory
_LONGEST_NAME, _MOST_DIMENSIONS = 500, 8
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
DTYPES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes of a value, by the name of its dtype."""
# Headers up to so many bytes are kept until another comes: those of a bank's adapters are mostly the same, to the byte,
# and of some hundred tensors take longer to parse than all the rest but reading the data.
_LARGEST_KEPT = 1 << 20
_STORED_AS = "stored_as"
_SAVE_AGAIN = "copy the file again, or save the adapter again with PEFT"
# How other files begin that are found under this name, told apart when the length makes no sense.
_FOREIGN = {
    b"PK\x03\x04": "a zip archive, as torch.save writes it (a pickle)",
    b"\x80\x02": "a pickle",
    b"version ": "a Git LFS pointer (run 'git lfs pull')",
}


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return a dtype of `DTYPES`, little-endian.

    NumPy has no bfloat16 of its own. What brings it takes most of a second to import, and few adapters have it.
    """
    import numpy as np

    if name == "bfloat16":
        import ml_dtypes

        found: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return found
    return np.dtype({"float32": "<f4", "float16": "<f2"}[name])


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file: `start` and `stop` count bytes from the end of the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


_parsed: tuple[bytes | None, tuple[TensorEntry, ...]] = (None, ())


def read_header(file: BinaryIO, file_bytes: int, path: Path) -> bytes:
    """Read the bytes of the header, with their padding and without the 8 bytes of their length.

    Leaves the file at the first byte of data.

    Raises
    ------
    AdapterError
        The file is empty, truncated, or something else than safetensors.
    """
    first = file.read(8)
    if not first:
        raise AdapterError(f"{path}: empty file; {_SAVE_AGAIN}")
    length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
    if len(first) < 8 or length > file_bytes - 8:
        for magic, what in _FOREIGN.items():
            if first.startswith(magic):
                raise AdapterError(f"{path}: a safetensors file was expected, {what} found; {_SAVE_AGAIN}")
        raise AdapterError(
            f"{path}: truncated, or not a safetensors file: a header of {length} bytes was expected, "
            f"{max(file_bytes - 8, 0)} bytes follow; {_SAVE_AGAIN}"
        )
    if length > MAX_HEADER_BYTES:
        raise AdapterError(
            f"{path}: a header of at most {MAX_HEADER_BYTES} bytes was expected, one of {length} found"
        )
    if length > _MOST_HEADER_BYTES:
        raise AdapterError(
            f"{path}: an adapter's header of at most {_MOST_HEADER_BYTES} bytes was expected, one of {length} found; "
            "save the adapter alone, without metadata of its own"
        )
    header = file.read(length)
    if len(header) != length:
        raise AdapterError(f"{path}: ended while its header was read; {_SAVE_AGAIN}")
    return header


def parse_header(header: bytes, path: Path) -> tuple[TensorEntry, ...]:
    """Return the tensors of a header in the order of their data, which they cover without gap or overlap.

    Raises
    ------
    AdapterError
        The header is malformed, or a tensor is not float32, float16 or bfloat16.
    """
    global _parsed
    known, tensors = _parsed
    if known == header:
        return tensors
    tensors = _tensors(header, path)
    if len(header) <= _LARGEST_KEPT:
        _parsed = header, tensors
    return tensors


def _tensors(header: bytes, path: Path) -> tuple[TensorEntry, ...]:
    try:
        if not header.startswith(b"{"):
            raise ValueError("it does not begin with an opening brace")
        content = parse_object(header.decode("utf-8"), most=_MOST_VALUES)
        _check_metadata(content.pop("__metadata__", None))
        entries = [_entry(name, content[name]) for name in content]
    except ValueError as error:
        raise AdapterError(f"{path}: malformed safetensors header: {error}; {_SAVE_AGAIN}") from None
    if not entries:
        raise AdapterError(f"{path}: holds no tensors; {_SAVE_AGAIN}")
    entries.sort(key=lambda entry: (entry.start, entry.stop))
    _check_supported(entries, path)
    _check_tiling(entries, path)
    return tuple(entries)


def check_data_bytes(entries: tuple[TensorEntry, ...], data_bytes: int, path: Path) -> None:
    """Compare the size of the data with what the header says.

    Raises
    ------
    AdapterError
        The file is truncated, or longer than its tensors.
    """
    expected = entries[-1].stop
    if data_bytes != expected:
        what = "truncated" if data_bytes < expected else "longer than its tensors"
        raise AdapterError(
            f"{path}: {what}: {expected} bytes of data were expected, {data_bytes} found; {_SAVE_AGAIN}"
        )


def _check_metadata(metadata: Any) -> None:
    if metadata is None:
        return
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError("__metadata__ was expected to map text to text")


def _entry(name: str, described: Any) -> TensorEntry:
    if not name.isprintable() or len(name) > _LONGEST_NAME:
        raise ValueError(
            f"the tensor name {one_line(repr(name), 80)} was expected to be printable and of at most {_LONGEST_NAME} "
            "characters"
        )
    if not isinstance(described, dict) or sorted(described) != ["data_offsets", "dtype", "shape"]:
        raise ValueError(f"{name!r} was expected to have dtype, shape and data_offsets alone")
    dtype, shape, offsets = described["dtype"], described["shape"], described["data_offsets"]
    if not isinstance(dtype, str) or not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        raise ValueError(f"dtype, shape or data_offsets of {name!r} are not what they should be")
    return TensorEntry(name, one_line(dtype, 20), tuple(shape), offsets[0], offsets[1])


def _counts(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= _MOST_DIMENSIONS
        and all(
            isinstance(count, int) and not isinstance(count, bool) and 0 <= count < 2**63 for count in value
        )
    )


def _check_supported(entries: list[TensorEntry], path: Path) -> None:
    other = [f"{entry.name} {entry.dtype!r}" for entry in entries if entry.dtype not in ITEM_BYTES]
    if other:
        raise AdapterError(
            f"{path}: tensors of dtype {', '.join(ITEM_BYTES)} were expected, {listed(other, 3)} found; "
            "convert the adapter in PEFT and save it again"
        )
    empty = [f"{entry.name} {entry.shape}" for entry in entries if 0 in entry.shape]
    if empty:
        raise AdapterError(
            f"{path}: empty tensors: {listed(empty, 3)}; gather sharded weights before saving the adapter"
        )


def _check_tiling(entries: list[TensorEntry], path: Path) -> None:
    end = 0
    for entry in entries:
        if entry.start != end:
            what = "overlaps the tensor before it" if entry.start < end else "leaves a gap before it"
            raise AdapterError(
                f"{path}: {entry.name} was expected to begin at byte {end}, {entry.start} found: "
                f"it {what}; {_SAVE_AGAIN}"
            )
        size = math.prod(entry.shape) * ITEM_BYTES[entry.dtype]
        if entry.stop - entry.start != size:
            raise AdapterError(
                f"{path}: {entry.name} of shape {entry.shape} and dtype {entry.dtype} was expected to have "
                f"{size} bytes, {entry.stop - entry.start} found; {_SAVE_AGAIN}"
            )
        end = entry.stop


def written_header(header: bytes, tensors: Iterable[tuple[str, str, Sequence[int]]], how: str) -> bytes:
    """Return a header of other tensors, one after another without gaps, with the metadata of another header.

    Parameters
    ----------
    header
        Whose metadata are kept.
    tensors
        Name, dtype as files have it, and shape of each, in the order of the data.
    how
        What was done to the adapter, which its metadata tell from now on: see `stored_as`.
    """
    metadata = parse_object(header.decode("utf-8")).get("__metadata__") or {}
    content: dict[str, Any] = {"__metadata__": {**metadata, _STORED_AS: how}}
    end = 0
    for name, dtype, shape in tensors:
        start, end = end, end + math.prod(shape) * ITEM_BYTES[dtype]
        content[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    return _padded(content)


def stored_as(header: bytes) -> str | None:
    """Return what was done to an adapter when it was stored, as its stored header tells; None where nothing was."""
    metadata = parse_object(header.decode("utf-8")).get("__metadata__") or {}
    return metadata.get(_STORED_AS)


def renamed_header(header: bytes, names: Mapping[str, str]) -> bytes:
    """Return a header with other names, by those in it, for the same data; padded as the format wants it."""
    content = parse_object(header.decode("utf-8"))
    return _padded({names.get(name, name): described for name, described in content.items()})


def without_metadata(header: bytes, keys: Iterable[str]) -> bytes:
    """Return a header for the same data without some of its metadata."""
    content, gone = parse_object(header.decode("utf-8")), set(keys)
    metadata = content.get("__metadata__") or {}
    content["__metadata__"] = {key: value for key, value in metadata.items() if key not in gone}
    return _padded(content)


def _padded(content: Mapping[str, Any]) -> bytes:
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    return text + b" " * (-len(text) % 8)
