"""Zarr arrays on disk: how they are opened, grown, made durable, and what may lie beside their chunks."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bankdb.errors import BankFormatError, BankNotFoundError

if TYPE_CHECKING:
    import zarr

# 512 KiB of float32: a row of 9,437,184 parameters is exactly 72 chunks.
CHUNK_COLUMNS = 131_072

_PARTIAL = re.compile(r"\.[0-9a-f]{32}\.partial$")


def column_chunk(parameters: int) -> int:
    """Return the chunk length along the columns of an (N, p) array."""
    return min(CHUNK_COLUMNS, parameters)


def create_array(
    path: Path,
    *,
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    shards: tuple[int, ...] | None,
    dtype: str,
    attributes: dict[str, Any],
) -> zarr.Array[Any]:
    """Create an array filled with NaN, in place of any that was there, and make it durable.

    Compression is blosc with lz4 and bit shuffling; `bankdb.shards` leaves chunks plain, in blosc's container,
    that it would hardly make smaller. Each chunk ends with its CRC32C: a flipped bit is an
    error when it is read, where blosc alone would give other numbers.
    """
    import zarr
    from zarr.codecs import BloscCodec, Crc32cCodec
    from zarr.storage import LocalStore

    if path.exists():
        shutil.rmtree(path)
    # A store and not a path as text, which zarr would take for an address where it holds `://` or `::`.
    array = zarr.create_array(
        LocalStore(path),
        shape=shape,
        chunks=chunks,
        shards=shards,
        dtype=dtype,
        compressors=[BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle"), Crc32cCodec()],
        fill_value=float("nan"),
        attributes=attributes,
        zarr_format=3,
    )
    fsync_path(path / "zarr.json")
    fsync_path(path)
    fsync_path(path.parent)
    return array


def ensure_group(path: Path) -> None:
    """Make a zarr group at `path` if there is none, so that standard tools can browse what is in it."""
    import zarr
    from zarr.storage import LocalStore

    if not (path / "zarr.json").is_file():
        zarr.create_group(LocalStore(path), zarr_format=3, overwrite=False)


def open_array(path: str | Path, *, mode: str = "r") -> zarr.Array[Any]:
    """Open an existing array.

    Raises
    ------
    BankNotFoundError
        There is no array at `path`.
    BankFormatError
        Its metadata cannot be read.
    """
    import zarr
    from zarr.storage import LocalStore

    metadata = Path(path) / "zarr.json"
    if not metadata.is_file():
        raise BankNotFoundError(f"{path}: expected a zarr array, found none; it is damaged or was deleted")
    try:
        store = LocalStore(path, read_only=mode == "r")
        found = zarr.open(store, mode=mode)  # type: ignore[arg-type]
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise BankFormatError(f"{metadata}: unreadable array metadata ({_first_line(error)})") from error
    if not isinstance(found, zarr.Array):
        raise BankFormatError(f"{path}: expected a zarr array, found a group")
    return found


def read_region(array: zarr.Array[Any], selection: Any, advice: str) -> NDArray[Any]:
    """Read part of an array as NumPy's.

    Raises
    ------
    BankFormatError
        A chunk is truncated or otherwise damaged; the message ends with `advice`.
    """
    try:
        return np.asarray(array[selection])
    except (ValueError, LookupError, ArithmeticError, RuntimeError, OSError) as error:
        raise BankFormatError(
            f"{array.store_path}: stored chunks cannot be read ({type(error).__name__}: {_first_line(error)}); {advice}"
        ) from error


def grow_array(path: Path, shape: tuple[int, ...]) -> None:
    """Make the array at least of `shape`; never smaller. The caller holds the bank's write lock."""
    array = open_array(path, mode="r+")
    wanted = tuple(max(have, want) for have, want in zip(array.shape, shape, strict=True))
    if wanted != array.shape:
        array.resize(wanted)
        fsync_path(path / "zarr.json")
        fsync_path(path)


def fsync_path(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_written(path: Path, files: Iterable[Path]) -> None:
    """Flush chunk files of the array at `path`, and every folder between them and it."""
    written = list(files)
    for file in written:
        fsync_path(file)
    fsync_folders(path, written)


def fsync_folders(path: Path, files: Iterable[Path]) -> None:
    """Flush the array's folder at `path`, and every folder between it and chunk files that are flushed."""
    folders: set[Path] = {path}
    for file in files:
        folders.update(parent for parent in file.parents if parent.is_relative_to(path))
    for folder in sorted(folders, key=lambda item: len(item.parts), reverse=True):
        fsync_path(folder)


def chunk_file(path: Path, *index: int) -> Path:
    """Return the file of a chunk (of a shard, where there are shards) in a zarr 3 local store."""
    return path.joinpath("c", *map(str, index))


def partial_files(path: Path) -> list[Path]:
    """Return files that a killed writer left behind: zarr writes beside the chunk, then renames."""
    # os.walk passes over folders that a running writer removes meanwhile.
    walked = ((folder, name) for folder, _, names in os.walk(path) for name in names)
    return sorted(Path(folder, name) for folder, name in walked if is_partial(name))


def is_partial(name: str) -> bool:
    """Return whether a file of this name is one that zarr is writing, or that a killed writer left."""
    return _PARTIAL.search(name) is not None


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
