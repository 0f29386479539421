"""Zarr arrays in a folder or under a URL: how they are opened, made durable, and what may lie beside chunks.

In a folder, what is written is there after its file and folders were flushed. Under a URL, an object is there, whole,
as soon as the store has acknowledged it; there is nothing to flush, and no half written file.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bankdb.arrays import remote
from bankdb.arrays.durable import delete_tree, fsync_path
from bankdb.arrays.remote import Location, RemotePath, located
from bankdb.errors import BankError, BankFormatError, BankNotFoundError, one_line

if TYPE_CHECKING:
    import zarr

# 512 KiB of float32: a row of 9,437,184 parameters is exactly 72 chunks.
CHUNK_COLUMNS = 131_072


def column_chunk(parameters: int) -> int:
    """Return the chunk length along the columns of an (N, p) array."""
    return min(CHUNK_COLUMNS, parameters)


def create_array(
    path: Location,
    *,
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    shards: tuple[int, ...] | None,
    dtype: str,
    attributes: dict[str, Any],
) -> zarr.Array[Any]:
    """Create an array filled with NaN, in place of any that was there, and make it durable.

    Compression is blosc with lz4 and bit shuffling; `bankdb.arrays.shards` leaves chunks plain, in blosc's container,
    that it would hardly make smaller. Each chunk ends with its CRC32C: a flipped bit is an
    error when it is read, where blosc alone would give other numbers.
    """
    import zarr
    from zarr.codecs import BloscCodec, Crc32cCodec

    delete_tree(path)
    array = zarr.create_array(
        array_store(path),
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


def array_store(path: Location, *, read_only: bool = False) -> Any:
    """Return zarr's store of what is at `path`."""
    if isinstance(path, RemotePath):
        from bankdb.arrays.remote_zarr import zarr_store

        return zarr_store(path, read_only=read_only)
    from zarr.storage import LocalStore

    # A store and not a path as text, which zarr would take for an address where it holds `://` or `::`.
    return LocalStore(path, read_only=read_only)


def ensure_group(path: Location, attributes: dict[str, Any] | None = None) -> None:
    """Make a zarr group at `path` if there is none, so that standard tools can browse what is in it."""
    if not (path / "zarr.json").is_file():
        import zarr

        zarr.create_group(array_store(path), zarr_format=3, overwrite=False, attributes=attributes)


def group_attributes(path: Location) -> dict[str, Any] | None:
    """Return the attributes of the zarr group at `path`, or None if there is no group that can be read."""
    import zarr

    try:
        group = zarr.open_group(array_store(path, read_only=True), mode="r", zarr_format=3)
    except (ValueError, LookupError, TypeError, AttributeError, FileNotFoundError):
        return None
    return dict(group.attrs)


def open_array(path: str | Location, *, mode: str = "r") -> zarr.Array[Any]:
    """Open an existing array.

    Raises
    ------
    BankNotFoundError
        There is no array at `path`.
    BankFormatError
        Its metadata cannot be read.
    """
    import zarr

    location = located(path) if isinstance(path, str) else path
    metadata = location / "zarr.json"
    missing = f"{path}: expected a zarr array, found none; it is damaged or was deleted"
    try:
        store = array_store(location, read_only=mode == "r")
        if isinstance(location, RemotePath):
            # One request, which says also that nothing is there.
            opened: Any = zarr.open_array(store, mode=mode, zarr_format=3)
        elif not metadata.is_file():
            raise BankNotFoundError(missing)
        else:
            opened = zarr.open(store, mode=mode)  # type: ignore[arg-type]
    except FileNotFoundError as error:
        raise BankNotFoundError(missing) from error
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise BankFormatError(f"{metadata}: unreadable array metadata ({one_line(error)})") from error
    if not isinstance(opened, zarr.Array):
        raise BankFormatError(f"{path}: expected a zarr array, found a group")
    return opened


def chunk_file(path: Location, *index: int) -> Location:
    """Return the file of a chunk (of a shard, where there are shards) in a zarr 3 store."""
    return path.joinpath("c", *map(str, index))


def stored_chunks(path: Location) -> set[tuple[int, ...]]:
    """Return the indexes of the chunks (shards, where there are shards) of the array at `path` that are there."""
    if isinstance(path, RemotePath):
        names = [tuple(name.split("/")) for name in remote.objects_below(path / "c")]
        return {tuple(map(int, name)) for name in names if all(part.isdecimal() for part in name)}
    found: set[tuple[int, ...]] = set()
    for folder, _, files in os.walk(path / "c"):
        # Once a folder: there may be a hundred thousand files.
        above = Path(folder).relative_to(path / "c").parts
        if all(part.isdecimal() for part in above):
            numbers = tuple(map(int, above))
            found.update((*numbers, int(name)) for name in files if name.isdecimal())
    return found


def array_mark(folder: str) -> str:
    """Return what tells an array's folder from others: its metadata, and when that was written.

    Whole seconds, as not every shared file system keeps more; no inode, which differs between hosts. Under a
    URL, the metadata alone, which names the bank.
    """
    place = located(folder)
    if isinstance(place, RemotePath):
        try:
            (content,) = remote.read_ranges([(place / "zarr.json", 0, None)])
        except BankError as error:
            return f"nothing ({error})"
        return "nothing (no such object)" if content is None else hashlib.sha256(content).hexdigest()[:16]
    try:
        with Path(folder, "zarr.json").open("rb") as file:
            written = int(os.fstat(file.fileno()).st_mtime)
            return hashlib.sha256(file.read() + str(written).encode()).hexdigest()[:16]
    except OSError as error:
        return f"nothing ({error.strerror})"
