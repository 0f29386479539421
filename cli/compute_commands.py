"""Commands that compute: distances, coefficients, predict."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.display import print_json, print_table, shown_progress
from cli.options import (
    approach_option,
    approach_parameters,
    bank_option,
    chosen_approaches,
    chosen_metrics,
    cluster_of,
    cluster_options,
    column_options,
    dtype_option,
    json_option,
    metric_option,
    metric_parameters,
    opened,
    overwrite_option,
)
from cli.tables import write_matrices

if TYPE_CHECKING:
    import xarray

    from compute.new_dataset import Prediction
    from compute.options import PredictionOptions
    from compute.predict import PredictedBank

csv_option = click.option(
    "--csv",
    type=click.Path(path_type=Path),
    help="Write the matrix as CSV: rows are targets; - is the screen.",
)
_LISTED = 10


@click.command(epilog="\b\nExample:\n  bank distances --metric all --csv distances.csv")
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
    from compute.cluster import open_cluster
    from compute.predict import distances as run_distances

    progress = shown_progress()
    matrices = []
    with opened(bank_path) as bank:
        _ = bank.layout
        with open_cluster(cluster_of(**cluster), progress) as workers:
            for name in chosen_metrics(metrics):
                gaussian = name == "mmd" and kernel == "gaussian"
                matrices.append(
                    run_distances(
                        bank,
                        name,
                        kernel=kernel if name == "mmd" else "multiscale",
                        sigma=sigma if gaussian else None,
                        compatible=compatible,
                        cluster=workers,
                        progress=progress,
                    )
                )
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
    epilog="\b\nExample:\n  bank coefficients --metric js --approach normalized --csv coefficients.csv"
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
    kernel: str,
    sigma: float | None,
    compatible: str,
    temperature: float,
    top_k: int | None,
    protocol: str,
    seed: int,
    width: int,
    csv: Path | None,
    as_json: bool,
    **cluster: Any,
) -> None:
    """Compute the leave-one-out coefficients: how much of each source goes into each target."""
    from compute.cluster import open_cluster
    from compute.predict import coefficients as run_coefficients

    progress = shown_progress()
    parameters = _Parameters(kernel, sigma, compatible, temperature, top_k, protocol, seed, width)
    with opened(bank_path) as bank:
        _ = bank.layout
        chosen = parameters.combinations(metrics, approaches)
        with open_cluster(cluster_of(**cluster), progress) as workers:
            matrices = [
                run_coefficients(bank, options, cluster=workers, progress=progress) for options in chosen
            ]
    labels = [{"metric": options.metric, "approach": options.approach} for options in chosen]
    _show_matrices(matrices, labels, csv, as_json)
    if csv is None and not as_json:
        rows = [
            (label["metric"], label["approach"], float(matrix["effective_sources"].mean()))
            for label, matrix in zip(labels, matrices, strict=True)
        ]
        print_table(("metric", "approach", "effective sources"), rows)


class _Parameters:
    """The options of the command line, to be combined with metrics and approaches."""

    def __init__(
        self,
        kernel: str,
        sigma: float | None,
        compatible: str,
        temperature: float,
        top_k: int | None,
        protocol: str,
        seed: int,
        width: int,
    ) -> None:
        self._mmd: dict[str, Any] = {"kernel": kernel, "sigma": sigma}
        self._softmin: dict[str, Any] = {"temperature": temperature, "top_k": top_k}
        self._neural: dict[str, Any] = {"protocol": protocol, "seed": seed, "width": width}
        self._compatible = compatible

    def combination(self, metric: str, approach: str) -> PredictionOptions:
        """Return the options of one prediction."""
        from compute.options import PredictionOptions

        mmd = self._mmd if metric == "mmd" else {}
        own = self._neural if approach == "neural" else self._softmin
        return PredictionOptions(metric=metric, approach=approach, compatible=self._compatible, **mmd, **own)

    def combinations(self, metrics: tuple[str, ...], approaches: tuple[str, ...]) -> list[PredictionOptions]:
        """Return every metric with every approach; an approach that reads no distances, once."""
        from compute.options import NO_DISTANCES

        names = chosen_metrics(metrics)
        return [
            self.combination(metric, approach)
            for approach in chosen_approaches(approaches)
            for metric in (names[:1] if approach in NO_DISTANCES else names)
        ]


def _show_matrices(
    matrices: list[xarray.DataArray], labels: list[dict[str, str]], csv: Path | None, as_json: bool
) -> None:
    if csv is not None:
        write_matrices(csv, matrices, labels)
        if str(csv) != "-":
            click.echo(f"wrote {csv}", err=as_json)
    if as_json:
        names = [str(name) for name in matrices[0]["source"].values]
        print_json(
            {
                "names": names,
                "matrices": [
                    {**label, "values": matrix.values.tolist()}
                    for label, matrix in zip(labels, matrices, strict=True)
                ],
            }
        )


@click.command(
    epilog="\b\nExamples:\n"
    "  bank predict my-data.jsonl --out my-adapter\n"
    "  bank predict --all --metric js --approach normalized --export predicted\n"
    "  bank predict --all --metric all --approach all --weight-error"
)
@bank_option
@click.argument("newdata", required=False, type=click.Path(path_type=Path))
@click.option(
    "--all", "whole_bank", is_flag=True, help="Predict every adapter of the bank from all the others."
)
@metric_option(many=True)
@approach_option()
@metric_parameters
@approach_parameters
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the new adapter (with NEWDATA).")
@click.option(
    "--export", type=click.Path(path_type=Path), help="Folder for all adapters, by name (with --all)."
)
@click.option("--name", help="Name of the new dataset; its file's or folder's if not given.")
@click.option(
    "--include-same", is_flag=True, help="Use an entry of the bank even if it holds the very same data."
)
@click.option(
    "--weight-error", is_flag=True, help="With --all: tell how far predictions are from the real weights."
)
@column_options
@dtype_option
@overwrite_option
@json_option
@cluster_options
def predict(
    bank_path: Path,
    newdata: Path | None,
    whole_bank: bool,
    metrics: tuple[str, ...],
    approaches: tuple[str, ...],
    kernel: str,
    sigma: float | None,
    compatible: str,
    temperature: float,
    top_k: int | None,
    protocol: str,
    seed: int,
    width: int,
    **other: Any,
) -> None:
    """Predict an adapter for NEWDATA, or with --all every adapter of the bank by leave-one-out.

    NEWDATA is a file (JSONL, JSON, CSV, Parquet) or a folder with a training split.
    """
    if whole_bank == (newdata is not None):
        raise click.UsageError("give NEWDATA, or --all: one of them")
    parameters = _Parameters(kernel, sigma, compatible, temperature, top_k, protocol, seed, width)
    if newdata is None:
        _predict_all(bank_path, parameters.combinations(metrics, approaches), other)
        return
    if "all" in (*metrics, *approaches) or len(metrics) > 1 or len(approaches) > 1:
        raise click.UsageError("NEWDATA takes one --metric and one --approach")
    _predict_new(bank_path, newdata, parameters.combination(chosen_metrics(metrics)[0], approaches[0]), other)


def _predict_new(bank_path: Path, newdata: Path, options: PredictionOptions, other: dict[str, Any]) -> None:
    from bankdb.pairs import check_name
    from compute.cluster import parse_memory
    from compute.export import export_prediction
    from compute.new_dataset import dataset_name
    from compute.new_dataset import predict as run_predict

    if other["out"] is None:
        raise click.UsageError("NEWDATA needs --out FOLDER, where the adapter is written")
    if other["export"] is not None or other["weight_error"]:
        raise click.UsageError("--export and --weight-error go with --all")
    name = other["name"] or dataset_name(newdata)
    check_name(name)
    with opened(bank_path) as bank:
        prediction = run_predict(
            bank,
            newdata,
            options,
            name=name,
            input_column=other["input_column"],
            output_column=other["output_column"],
            include_same=other["include_same"],
            memory=None if other["memory"] is None else parse_memory(other["memory"]),
            progress=shown_progress(),
        )
        folder = export_prediction(
            bank, prediction, other["out"], dtype=other["dtype"], overwrite=other["overwrite"]
        )
    _tell_prediction(prediction, folder, other["as_json"])


def _tell_prediction(prediction: Prediction, folder: Path, as_json: bool) -> None:
    order = sorted(range(len(prediction.adapters)), key=lambda i: -prediction.coefficients[i])
    used = [i for i in order if prediction.coefficients[i] > 0]
    if as_json:
        print_json(
            {
                "name": prediction.name,
                "folder": str(folder),
                "metric": prediction.metric,
                "approach": prediction.options.approach,
                "effective_sources": prediction.effective_sources,
                "left_out": list(prediction.left_out),
                "sources": {prediction.adapters[i].name: float(prediction.coefficients[i]) for i in used},
            }
        )
        return
    rows = [
        (prediction.adapters[i].name, float(prediction.coefficients[i]), _number(prediction.distances[i]))
        for i in used[:_LISTED]
    ]
    rest = len(used) - len(rows)
    print_table(("source", "coefficient", f"distance ({prediction.metric})"), rows)
    if rest:
        click.echo(f"and {rest} more sources")
    click.echo(
        f"effective number of sources: {prediction.effective_sources:.2f} of {len(prediction.adapters)}"
    )
    click.echo(f"wrote {folder}/, which PEFT and vLLM load")


def _predict_all(bank_path: Path, chosen: list[PredictionOptions], other: dict[str, Any]) -> None:
    from compute.cluster import open_cluster
    from compute.export import export_all
    from compute.predict import predict_all_ways

    if other["out"] is not None or other["name"] is not None or other["include_same"]:
        raise click.UsageError(
            "--out, --name and --include-same go with NEWDATA; with --all use --export FOLDER"
        )
    if other["export"] is not None and len(chosen) > 1:
        raise click.UsageError("--export takes one metric and one approach")
    progress = shown_progress()
    where = {key: other[key] for key in ("scheduler", "scheduler_file", "workers", "memory")}
    with opened(bank_path) as bank:
        _ = bank.layout
        with open_cluster(cluster_of(**where), progress) as workers:
            made = predict_all_ways(
                bank, chosen, cluster=workers, weight_errors=other["weight_error"], progress=progress
            )
        if other["export"] is not None:
            export_all(
                bank,
                made[0],
                other["export"],
                dtype=other["dtype"],
                overwrite=other["overwrite"],
                progress=progress,
            )
    _tell_all(made, other["export"], other["as_json"])


def _tell_all(made: list[PredictedBank], export: Path | None, as_json: bool) -> None:
    rows = [_combination_summary(predicted) for predicted in made]
    if as_json:
        print_json({"predictions": rows, "export": None if export is None else str(export)})
        return
    headings = ["metric", "approach", "effective sources", "relative weight error"]
    keep = headings if any(row["relative_error"] is not None for row in rows) else headings[:3]
    body = [
        (row["metric"], row["approach"], row["effective_sources"], row["relative_error"])[: len(keep)]
        for row in rows
    ]
    print_table(keep, body)
    count = len(made[0].coefficients.adapters)
    click.echo(f"{count} adapters predicted by leave-one-out with each")
    if export is not None:
        click.echo(f"wrote {count} folders under {export}/, which PEFT and vLLM load")


def _combination_summary(predicted: PredictedBank) -> dict[str, Any]:
    import numpy as np

    found = predicted.coefficients
    error = predicted.relative_error
    return {
        "metric": found.metric,
        "approach": found.options.approach,
        "effective_sources": float(np.mean(found.effective)),
        "relative_error": None if error is None else _number(float(np.nanmean(error))),
        "run": predicted.run.id,
        "array": str(predicted.path / "adapters"),
    }


def _number(value: float) -> float | None:
    """Return a number, or None where there is none to show."""
    return float(value) if math.isfinite(value) else None


COMMANDS = (distances, coefficients, predict)
