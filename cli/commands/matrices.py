"""Commands that compute matrices: distances, coefficients."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.display import print_json, print_table, shown_progress, tell, write_csv
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
)

if TYPE_CHECKING:
    from compute.pairwise.labelled import LabelledMatrix
    from compute.pairwise.matrix import DistanceMatrix


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
    import compute
    from compute.prediction.ways import chosen_metrics

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
    _show_matrices(matrices, labels, csv, as_json)
    if csv is None and not as_json:
        print_table(("metric", "smallest", "median", "largest"), [_summary(matrix) for matrix in matrices])


def _summary(matrix: DistanceMatrix) -> tuple[str, float, float, float]:
    import numpy as np

    others = matrix.values[~np.eye(len(matrix.adapters), dtype=bool)]
    if not others.size:
        return matrix.metric, 0.0, 0.0, 0.0
    return matrix.metric, float(others.min()), float(np.median(others)), float(others.max())


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
    import compute

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
    _show_matrices(matrices, labels, csv, as_json, other["leave_out"])
    if csv is None and not as_json:
        rows = [
            (label["metric"], label["approach"], float(matrix.effective.mean()))
            for label, matrix in zip(labels, matrices, strict=True)
        ]
        print_table(("metric", "approach", "effective sources"), rows)


def _show_matrices(
    matrices: Sequence[LabelledMatrix],
    labels: list[dict[str, str]],
    csv: Path | None,
    as_json: bool,
    leave_out: str | None = None,
) -> None:
    if csv is not None:
        from compute.pairwise.labelled import matrices_csv

        write_csv(csv, matrices_csv(matrices, labels))
        if str(csv) != "-":
            tell(f"wrote {csv}", err=as_json)
    if as_json:
        names = matrices[0].names
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
