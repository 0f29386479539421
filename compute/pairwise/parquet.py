"""Matrices as Parquet, for many datasets: a row a target, its values as a list, a band of rows at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bankdb.arrays.durable import fsync_path, naming
from compute.pairwise.text import Banded, band_rows

SOURCES = "sources"
"""Key of the file's metadata: the names that the values of a row are of, as a JSON list."""


def write_parquet(path: Path, matrices: Sequence[Banded], labels: Sequence[Mapping[str, str]]) -> None:
    """Write matrices below each other: the labels' columns, `target`, and `values`, a list of N float64.

    Tens of thousands of columns are more than programs that read Parquet bear; the names of the sources are in the
    file's metadata instead. The file appears whole or not at all, in place of one that was there.
    """
    import pyarrow
    from pyarrow import parquet

    n = len(matrices[0].names)
    keys = list(labels[0])
    schema = pyarrow.schema(
        [
            *((key, pyarrow.string()) for key in (*keys, "target")),
            ("values", pyarrow.list_(pyarrow.float64(), n)),
        ],
        metadata={SOURCES: json.dumps(matrices[0].names)},
    )
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with naming(path):
            with parquet.ParquetWriter(unfinished, schema) as writer:
                for matrix, label in zip(matrices, labels, strict=True):
                    for start in range(0, n, band_rows(n)):
                        writer.write_batch(_batch(schema, matrix, label, start))
            fsync_path(unfinished)
            unfinished.replace(path)
            fsync_path(path.absolute().parent)
    finally:
        unfinished.unlink(missing_ok=True)


def _batch(schema: Any, matrix: Banded, label: Mapping[str, str], start: int) -> Any:
    import pyarrow

    names = matrix.names
    some = names[start : start + band_rows(len(names))]
    values = pyarrow.array(np.ascontiguousarray(matrix.band(start, start + len(some))).ravel())
    columns = [pyarrow.array([label[key]] * len(some)) for key in label]
    listed = pyarrow.FixedSizeListArray.from_arrays(values, len(names))
    return pyarrow.record_batch([*columns, pyarrow.array(some), listed], schema=schema)
