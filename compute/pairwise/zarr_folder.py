"""Matrices as a zarr group, for many datasets: an array each, written a band of rows at a time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from bankdb.arrays.durable import fsync_path, naming
from bankdb.errors import ConflictError
from compute.pairwise.text import Banded, band_rows

NAMES = "names"
"""Attribute of the group and of each array: the names of the N targets, and of the N sources, in their order."""
# Columns of a chunk: with the rows of a band, at most 16 MiB.
_COLUMNS = 4096


def check_free(path: Path) -> None:
    """Raise ConflictError if something is where a group is to be written: folders are not replaced."""
    if path.exists() or path.is_symlink():
        raise ConflictError(f"{path}: already there; delete it, or choose another path")


def write_zarr(path: Path, matrices: Sequence[Banded], labels: Sequence[Mapping[str, str]]) -> None:
    """Write matrices as arrays of a zarr group of format 3, float64 of shape (N, N), rows being targets.

    An array is called by its labels, joined with `-`, has them as attributes, and dimensions `target` and `source`.
    Each chunk has a CRC32C. The group appears whole or not at all.

    Raises
    ------
    ConflictError
        Something is at `path`.
    """
    check_free(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with naming(path):
            _write(unfinished, matrices, labels)
            for folder, _, files in os.walk(unfinished, topdown=False):
                for name in files:
                    fsync_path(Path(folder, name))
                fsync_path(Path(folder))
            check_free(path)
            unfinished.rename(path)
            fsync_path(path.absolute().parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write(path: Path, matrices: Sequence[Banded], labels: Sequence[Mapping[str, str]]) -> None:
    import zarr
    from zarr.codecs import BloscCodec, Crc32cCodec
    from zarr.storage import LocalStore

    group = zarr.create_group(LocalStore(path), zarr_format=3, attributes={NAMES: matrices[0].names})
    for matrix, label in zip(matrices, labels, strict=True):
        names = matrix.names
        n, height = len(names), band_rows(len(names))
        array = group.create_array(
            "-".join(label.values()),
            shape=(n, n),
            chunks=(min(n, height), min(n, _COLUMNS)),
            dtype="float64",
            compressors=[BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle"), Crc32cCodec()],
            fill_value=float("nan"),
            dimension_names=["target", "source"],
            attributes={**label, NAMES: names},
        )
        for start in range(0, n, height):
            array[start : start + height] = matrix.band(start, min(start + height, n))
