"""Files that appear whole; labelled matrices as CSV: rows are targets, columns are sources, all digits kept."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    import xarray


def write_matrices(
    path: Path, matrices: Sequence[xarray.DataArray], labels: Sequence[dict[str, str]]
) -> None:
    """Write matrices below each other; where there are several, leading columns say which is which.

    `-` writes to standard output. A file appears whole or not at all.
    """
    keys = list(labels[0]) if len(matrices) > 1 else []
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*keys, "target", *matrices[0]["source"].values])
    for matrix, label in zip(matrices, labels, strict=True):
        for target, row in zip(matrix["target"].values, matrix.values, strict=True):
            writer.writerow([*(label[key] for key in keys), target, *(repr(float(value)) for value in row)])
    write_text(path, text.getvalue())


def write_text(path: Path, text: str) -> None:
    """Write a file so that it appears whole or not at all; `-` is standard output."""
    if str(path) == "-":
        click.echo(text, nl=False)
    else:
        write_file(path, text)


def write_file(path: Path, text: str) -> None:
    """Write a file so that it appears whole or not at all."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
