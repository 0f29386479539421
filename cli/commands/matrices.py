"""Commands that compute matrices: distances, coefficients."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.display import print_json, print_table, shown_progress, tell, write_matrices
from cli.option_rules import CheckedCommand
from cli.options import (
    Parameters,
    approach_option,
    approach_parameters,
    bank_option,
    chosen_metrics,
    cluster_of,
    cluster_options,
    json_option,
    metric_option,
    metric_parameters,
    opened,
)

if TYPE_CHECKING:
    import xarray


csv_option = click.option(
    "--csv",
    type=click.Path(path_type=Path),
    help="Write the matrix as CSV: rows are targets; - is the screen.",
)
_LISTED = 10


@click.command(cls=CheckedCommand, epilog="\b\nExample:\n  bank distances --metric all --csv distances.csv")
@bank_option
@metric_option(many=True)
@metric_parameters
@csv_option
@json_option
@cluster_options
def distances(
    bank_path: Path,
    metrics: tuple[str, ...],
    kernel: str,
    sigma: float | None,
    compatible: str,
    csv: Path | None,
    as_json: bool,
    **cluster: Any,
) -> None:
    """Compute the distances between all datasets of the bank that are not stored yet.

    Entry (target, source) is the distance from the target's token distribution to the source's.
    """
    from compute.approaches.options import PredictionOptions
    from compute.cluster.client import open_cluster
    from compute.prediction.matrices import distances_by

    progress = shown_progress()
    ways = [
        PredictionOptions(
            metric=name,
            kernel=kernel if name == "mmd" else "multiscale",
            sigma=sigma if name == "mmd" and kernel == "gaussian" else None,
            compatible=compatible,
        )
        for name in chosen_metrics(metrics)
    ]
    with opened(bank_path) as bank:
        _ = bank.layout
        with open_cluster(cluster_of(cluster), progress, bank.store.path) as workers:
            matrices = distances_by(bank, ways, cluster=workers, progress=progress)
    labels = [{"metric": str(matrix.name)} for matrix in matrices]
    _show_matrices(matrices, labels, csv, as_json)
    if csv is None and not as_json:
        print_table(("metric", "smallest", "median", "largest"), [_summary(matrix) for matrix in matrices])


def _summary(matrix: xarray.DataArray) -> tuple[str, float, float, float]:
    import numpy as np

    others = matrix.values[~np.eye(len(matrix), dtype=bool)]
    if not others.size:
        return str(matrix.name), 0.0, 0.0, 0.0
    return str(matrix.name), float(others.min()), float(np.median(others)), float(others.max())


@click.command(
    cls=CheckedCommand,
    epilog="\b\nExample:\n  bank coefficients --metric js --approach normalized --csv coefficients.csv",
)
@bank_option
@metric_option(many=True)
@approach_option()
@metric_parameters
@approach_parameters
@csv_option
@json_option
@cluster_options
def coefficients(
    bank_path: Path,
    metrics: tuple[str, ...],
    approaches: tuple[str, ...],
    csv: Path | None,
    as_json: bool,
    **other: Any,
) -> None:
    """Compute the leave-one-out coefficients: how much of each source goes into each target."""
    from compute.cluster.client import open_cluster
    from compute.prediction.coefficients import coefficients_by

    progress = shown_progress()
    with opened(bank_path) as bank:
        _ = bank.layout
        chosen = Parameters(other).combinations(metrics, approaches)
        with open_cluster(cluster_of(other), progress, bank.store.path) as workers:
            matrices = coefficients_by(bank, chosen, cluster=workers, progress=progress)
    labels = [{"metric": options.metric, "approach": options.approach} for options in chosen]
    _show_matrices(matrices, labels, csv, as_json, other["leave_out"])
    if csv is None and not as_json:
        rows = [
            (label["metric"], label["approach"], float(matrix["effective_sources"].mean()))
            for label, matrix in zip(labels, matrices, strict=True)
        ]
        print_table(("metric", "approach", "effective sources"), rows)


def _show_matrices(
    matrices: list[xarray.DataArray],
    labels: list[dict[str, str]],
    csv: Path | None,
    as_json: bool,
    leave_out: str | None = None,
) -> None:
    if csv is not None:
        write_matrices(csv, matrices, labels)
        if str(csv) != "-":
            tell(f"wrote {csv}", err=as_json)
    if as_json:
        names = [str(name) for name in matrices[0]["source"].values]
        print_json(
            {
                "names": names,
                **({} if leave_out is None else {"leave_out": leave_out}),
                "matrices": [
                    {**label, "values": matrix.values.tolist()}
                    for label, matrix in zip(labels, matrices, strict=True)
                ],
            }
        )


COMMANDS = (distances, coefficients)
