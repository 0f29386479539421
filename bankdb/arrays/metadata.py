"""What a `zarr.json` of ours says: written whole, and sealed, so that whoever reads it sees if it was changed.

Only layouts that this project writes are known. The seal is an attribute: the hash of everything else in the file.
Version 0.1.0 wrote the same layouts without it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bankdb.arrays.durable import read_file, write_file
from bankdb.arrays.remote import Location
from bankdb.errors import BankFormatError, BankNotFoundError, one_line
from bankdb.strict_json import parse_object

METADATA = "zarr.json"
AGAIN = "run the same command again: it is computed again"
_SEAL = "seal"
# Metadata that list thousands of datasets take as long to parse as a tile to compute, and each tile reads them: from so
# many bytes on, what the last few said is kept, by all of their bytes.
_LARGE, _KEPT = 2**16, 4
# Bytes of a value.
_KINDS = {"float64": 8, "float32": 4, "int64": 8, "int32": 4, "uint32": 4, "uint64": 8}


@dataclass(frozen=True, slots=True)
class ArrayLayout:
    """How an array is cut into blocks of bytes: chunks under blosc, each with a CRC32C at its end.

    Attributes
    ----------
    shape, chunks
        Of the array and of a chunk.
    dtype
        Little-endian; floats are filled with NaN where nothing is stored, integers with 0.
    shards
        Shape of a file, where it holds several chunks; None where a chunk is a file.
    """

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: str
    shards: tuple[int, ...] | None = None

    @property
    def blocks(self) -> tuple[int, ...]:
        """Shape of a file."""
        return self.shards or self.chunks

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk before compression."""
        return math.prod(self.chunks) * _KINDS[self.dtype]

    def document(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """Return the metadata of such an array, as zarr's format 3 has them."""
        little = {"name": "bytes", "configuration": {"endian": "little"}}
        crc32c = {"name": "crc32c"}
        size = _KINDS[self.dtype]
        blosc = {"typesize": size, "cname": "lz4", "clevel": 5, "shuffle": "bitshuffle", "blocksize": 0}
        codecs: list[dict[str, Any]] = [little, {"name": "blosc", "configuration": blosc}, crc32c]
        if self.shards is not None:
            inside = {"chunk_shape": list(self.chunks), "codecs": codecs}
            index = {"index_codecs": [little, crc32c], "index_location": "end"}
            codecs = [{"name": "sharding_indexed", "configuration": inside | index}]
        return {
            "shape": list(self.shape),
            "data_type": self.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(self.blocks)}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": "NaN" if self.dtype.startswith("float") else 0,
            "codecs": codecs,
            "attributes": dict(attributes),
            "zarr_format": 3,
            "node_type": "array",
            "storage_transformers": [],
        }


@dataclass(frozen=True, slots=True)
class Metadata:
    """What was read of an array, or of a group.

    Attributes
    ----------
    layout
        None of a group, and of an array of a layout that is not known.
    attributes
        Without the seal.
    sealed
        Whether there was one; that it is right was checked.
    group
        Whether it is a group.
    """

    layout: ArrayLayout | None
    attributes: dict[str, Any]
    sealed: bool
    group: bool


def write_array(path: Location, layout: ArrayLayout, attributes: Mapping[str, Any]) -> None:
    """Write the sealed metadata of an array, durably, in place of what was there; its chunks stay."""
    _write(path, layout.document(attributes))


def write_unsealed_array(path: Location, layout: ArrayLayout, attributes: Mapping[str, Any]) -> None:
    """Write them as zarr itself does, without a seal: of adapters, whose rows the catalogue knows."""
    write_file(path / METADATA, json.dumps(layout.document(attributes), indent=2).encode())


def write_group(path: Location, attributes: Mapping[str, Any]) -> None:
    """Write the sealed metadata of a group, durably, in place of what was there."""
    _write(path, {"attributes": dict(attributes), "zarr_format": 3, "node_type": "group"})


def _write(path: Location, document: dict[str, Any]) -> None:
    attributes = document["attributes"] | {_SEAL: _digest(document)}
    # Without indentation, which only the slow encoder knows: some attributes list every dataset.
    write_file(path / METADATA, json.dumps(document | {"attributes": attributes}).encode())


def _digest(document: Mapping[str, Any]) -> str:
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_metadata(path: Location) -> Metadata | None:
    """Read the metadata of what is at `path`; None if there are none.

    Raises
    ------
    BankFormatError
        They cannot be understood, or are not what was written; the file is named.
    """
    raw = read_file(path / METADATA)
    if raw is None:
        return None
    try:
        return parse_metadata(raw)
    except ValueError as error:
        raise damaged(path / METADATA, f"unreadable metadata ({error})", path) from error


def parse_metadata(raw: bytes) -> Metadata:
    """Return what the bytes of a `zarr.json` say. Raises ValueError if they are none, or not what was written."""
    if len(raw) < _LARGE:
        return _parsed(raw)
    found = _large(raw)
    return replace(found, attributes=dict(found.attributes))


@functools.lru_cache(maxsize=_KEPT)
def _large(raw: bytes) -> Metadata:
    return _parsed(raw)


def _parsed(raw: bytes) -> Metadata:
    document = parse_object(raw.decode())
    attributes = document.get("attributes")
    if not isinstance(attributes, dict):
        raise ValueError("it has no attributes")
    seal = attributes.pop(_SEAL, None)
    if seal is not None and seal != _digest(document):
        raise ValueError("it was changed since it was written")
    group = _is_group(document)
    return Metadata(None if group else _layout(document), attributes, seal is not None, group)


def _is_group(document: Mapping[str, Any]) -> bool:
    kind, version = document.get("node_type"), document.get("zarr_format")
    if version != 3 or kind not in {"group", "array"}:
        raise ValueError(f"a group or an array of format 3 expected, {kind!r} of format {version!r} found")
    if kind == "group" and document.keys() - {
        "attributes",
        "zarr_format",
        "node_type",
        "consolidated_metadata",
    }:
        raise ValueError("a group has no such keys")
    return bool(kind == "group")


def read_layout(path: Location) -> tuple[ArrayLayout, dict[str, Any]]:
    """Read the layout and the attributes of an array of ours.

    Raises
    ------
    BankFormatError
        There is none at `path`, or of a layout that is not known.
    """
    found = read_metadata(path)
    if found is None or found.layout is None:
        raise damaged(path / METADATA, "an array was expected, none of a known layout found", path)
    return found.layout, found.attributes


def read_rows_metadata(path: Location) -> tuple[ArrayLayout, dict[str, Any]]:
    """Read the layout and the attributes of an array that holds adapters, a row a file.

    Without zarr, which opens arrays of any layout, and takes longer to import than most commands run.

    Raises
    ------
    BankNotFoundError
        There is no array at `path`.
    BankFormatError
        Its metadata cannot be understood, or are of a layout that is not known.
    """
    file = path / METADATA
    raw = read_file(file)
    if raw is None:
        raise BankNotFoundError(f"{path}: expected a zarr array, found none; it is damaged or was deleted")
    try:
        found = parse_metadata(raw)
    except ValueError as error:
        raise BankFormatError(f"{file}: unreadable array metadata ({one_line(error)})") from error
    if found.group:
        raise BankFormatError(f"{path}: expected a zarr array, found a group")
    layout = found.layout
    rows = layout is not None and layout.shards is not None and len(layout.shape) == 2
    if layout is None or not rows or layout.chunks[0] != 1 or layout.dtype != "float32":
        raise BankFormatError(
            f"{file}: of a layout that this version does not write; put the bank's own adapters.zarr back"
        )
    return layout, found.attributes


def damaged(file: Location, reason: str, delete: Location, advice: str = AGAIN) -> BankFormatError:
    """Return the error that names a damaged file and what to delete, so that it can be made again."""
    return BankFormatError(f"{file}: {reason}; delete {delete}; {advice}")


def _layout(document: Mapping[str, Any]) -> ArrayLayout | None:
    """Return the layout that a document states, or None if it is not exactly one of ours."""
    try:
        shape = tuple(document["shape"])
        blocks = tuple(document["chunk_grid"]["configuration"]["chunk_shape"])
        codec = document["codecs"][0]
        sharded = codec["name"] == "sharding_indexed"
        chunks = tuple(codec["configuration"]["chunk_shape"]) if sharded else blocks
        dtype = document["data_type"]
        if dtype not in _KINDS or not all(type(n) is int and n >= 0 for n in (*shape, *blocks, *chunks)):
            return None
        layout = ArrayLayout(shape, chunks, dtype, blocks if sharded else None)
        fits = len(shape) == len(blocks) == len(chunks) and all(blocks) and all(chunks)
        whole = all(block % chunk == 0 for block, chunk in zip(blocks, chunks, strict=True))
    except (LookupError, TypeError, ValueError):
        return None
    plain = {"storage_transformers": []} | {
        key: document[key] for key in document if key != "dimension_names"
    }
    return layout if fits and whole and plain == layout.document(document["attributes"]) else None
