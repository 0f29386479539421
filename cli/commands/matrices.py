"""Commands that compute matrices: distances, coefficients."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bankdb.shown import metric_text
from cli.display import json_text, print_part, print_table, shown_progress, tell, write_text
from cli.option_rules import CheckedCommand
from cli.options import (
    Parameters,
    approach_option,
    approach_parameters,
    bank_option,
    cluster_of,
    cluster_options,
    json_option,
    label_options,
    labels_of,
    metric_option,
    metric_parameters,
    opened,
    together,
)

if TYPE_CHECKING:
    from compute.pairwise.labelled import LabelledMatrix
    from compute.pairwise.matrix import DistanceMatrix


file_options = together(
    click.option(
        "--csv",
        type=click.Path(path_type=Path),
        help="Write the matrix as CSV: rows are targets; - is the screen.",
    ),
    click.option(
        "--parquet",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Write it as Parquet, for large banks: a row a target, its values as one list; the file's metadata name "
        "the sources.",
    ),
    click.option(
        "--zarr",
        type=click.Path(path_type=Path),
        help="Write it as a zarr group, for large banks: an array a matrix, the names in its attributes. Nothing that "
        "is there is replaced.",
    ),
)
_LISTED = 10


@click.command(cls=CheckedCommand, epilog="\b\nExample:\n  bank distances --metric all --csv distances.csv")
@bank_option
@metric_option(many=True)
@metric_parameters
@file_options
@json_option
@cluster_options
def distances(
    bank_path: Path,
    metrics: tuple[str, ...],
    kernel: str,
    sigma: float | None,
    compatible: str,
    csv: Path | None,
    parquet: Path | None,
    zarr: Path | None,
    as_json: bool,
    **cluster: Any,
) -> None:
    """Compute the distances between all datasets of the bank that are not stored yet.

    Entry (target, source) is the distance from the target's token distribution to the source's.
    """
    import compute
    from compute.prediction.ways import chosen_metrics

    _check_free(zarr)
    with opened(bank_path) as bank:
        matrices = compute.distances(
            bank,
            chosen_metrics(metrics),
            kernel=kernel,
            sigma=sigma if kernel == "gaussian" else None,
            compatible=compatible,
            cluster=cluster_of(cluster),
            progress=shown_progress(),
        )
    labels = [{"metric": matrix.metric} for matrix in matrices]
    _show_matrices(matrices, labels, (csv, parquet, zarr), as_json)
    if csv is None and not as_json:
        held = [matrix for matrix in matrices if matrix.held]
        if held:
            print_table(("metric", "smallest", "median", "largest"), [_summary(matrix) for matrix in held])
        for matrix in matrices:
            if not matrix.held:
                _tell_stored(matrix)


def _tell_stored(matrix: DistanceMatrix) -> None:
    """Tell of a matrix that is not read for a summary alone."""
    n = len(matrix.adapters)
    tell(
        f"{metric_text(matrix.metric)}: {n:,} x {n:,} distances are stored; --parquet FILE, --zarr FOLDER or --csv "
        f"FILE writes them, the last in about {20 * n * n / 1e9:.1f} GB"
    )


def _summary(matrix: DistanceMatrix) -> tuple[str, float, float, float]:
    import numpy as np

    others = matrix.values[~np.eye(len(matrix.adapters), dtype=bool)]
    if not others.size:
        return metric_text(matrix.metric), 0.0, 0.0, 0.0
    return metric_text(matrix.metric), float(others.min()), float(np.median(others)), float(others.max())


@click.command(
    cls=CheckedCommand,
    epilog="\b\nExample:\n  bank coefficients --metric js --approach normalized --csv coefficients.csv",
)
@bank_option
@metric_option(many=True)
@approach_option()
@metric_parameters
@approach_parameters
@label_options
@file_options
@json_option
@cluster_options
def coefficients(
    bank_path: Path,
    metrics: tuple[str, ...],
    approaches: tuple[str, ...],
    csv: Path | None,
    parquet: Path | None,
    zarr: Path | None,
    as_json: bool,
    **other: Any,
) -> None:
    """Compute the leave-one-out coefficients: how much of each source goes into each target."""
    import compute

    _check_free(zarr)
    with opened(bank_path) as bank:
        chosen = Parameters(other).combinations(metrics, approaches)
        matrices = compute.coefficients(
            bank,
            chosen,
            labels=labels_of(other),
            cluster=cluster_of(other),
            progress=shown_progress(),
        )
    labels = [{"metric": options.metric, "approach": options.approach} for options in chosen]
    _show_matrices(matrices, labels, (csv, parquet, zarr), as_json, other["leave_out"])
    if csv is None and not as_json:
        rows = [
            (label["metric"], label["approach"], float(matrix.effective.mean()))
            for label, matrix in zip(labels, matrices, strict=True)
        ]
        print_table(("metric", "approach", "effective sources"), rows)


def _check_free(zarr: Path | None) -> None:
    """Refuse a folder that is there before anything is computed."""
    if zarr is not None:
        from compute.pairwise.zarr_folder import check_free

        check_free(zarr)


def _show_matrices(
    matrices: Sequence[LabelledMatrix],
    labels: list[dict[str, str]],
    files: tuple[Path | None, Path | None, Path | None],
    as_json: bool,
    leave_out: str | None = None,
) -> None:
    csv, parquet, zarr = files
    if parquet is not None:
        from compute.pairwise.parquet import write_parquet

        write_parquet(parquet, matrices, labels)
        tell(f"wrote {parquet}", err=as_json)
    if zarr is not None:
        from compute.pairwise.zarr_folder import write_zarr

        write_zarr(zarr, matrices, labels)
        tell(f"wrote {zarr}", err=as_json)
    if csv is not None:
        _write_csv(csv, matrices, labels)
        if str(csv) != "-":
            tell(f"wrote {csv}", err=as_json)
    if as_json:
        _print_json(matrices, labels, {} if leave_out is None else {"leave_out": leave_out})


def _write_csv(path: Path, matrices: Sequence[LabelledMatrix], labels: list[dict[str, str]]) -> None:
    from bankdb.arrays.durable import write_whole
    from compute.pairwise.text import csv_bytes, matrices_csv

    if str(path) == "-":
        with closing(matrices_csv(matrices, labels)) as text:
            write_text(path, text)
    else:
        with closing(csv_bytes(matrices, labels)) as parts:
            write_whole(path, parts)


def _print_json(
    matrices: Sequence[LabelledMatrix], labels: list[dict[str, str]], more: dict[str, str]
) -> None:
    """Print matrices as JSON, a row a line, without the whole text in memory."""
    from compute.pairwise.text import values_json

    before = json_text({"names": matrices[0].names, **more, "matrices": []}).removesuffix("]\n}")
    for matrix, label in zip(matrices, labels, strict=True):
        print_part(before + json_text({**label, "values": []}).removesuffix("[]\n}"))
        with closing(values_json(matrix)) as parts:
            for part in parts:
                print_part(part)
        before = "},\n"
    print_part("}]\n}\n")


COMMANDS = (distances, coefficients)
