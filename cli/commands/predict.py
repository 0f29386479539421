"""`bank predict`: one new dataset, or every adapter of the bank by leave-one-out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bankdb.shown import metric_text
from cli.columns import column_options, rows_of
from cli.combining.options import merge_options, space_options
from cli.commands.assess import assess_written, check_written, test_options
from cli.commands.sharing.adapters import push_options, push_written, repository_of
from cli.display import print_json, print_table, shown_progress, tell
from cli.formats import format_options, gguf_of, tell_gguf, what_loads
from cli.option_rules import CheckedCommand
from cli.options import (
    Parameters,
    approach_option,
    approach_parameters,
    bank_option,
    cluster_of,
    cluster_options,
    dtype_option,
    examples_option,
    json_option,
    labels_of,
    machine_of,
    metric_option,
    metric_parameters,
    opened,
    overwrite_option,
)

if TYPE_CHECKING:
    from bankdb.bank import AdapterBank
    from compute.approaches.options import PredictionOptions
    from compute.prediction.coefficients import Coefficients
    from compute.prediction.export import DeltaExport
    from compute.prediction.predict_all import PredictedBank
    from compute.prediction.prediction import Prediction

_LISTED = 10


@click.command(
    cls=CheckedCommand,
    epilog="\b\nExamples:\n"
    "  bank predict my-data.jsonl --out my-adapter\n"
    "  bank predict my-data.jsonl --out my-adapter \\\n      --test my-test.jsonl --compare uniform\n"
    "  bank predict my-data.jsonl --out my-adapter \\\n      --format gguf --base-gguf smollm2.gguf\n"
    "  bank predict --all --metric js --approach normalized --export predicted\n"
    "  bank predict --all --metric all --approach all --weight-error\n"
    "  bank predict --all --space delta --rank full --export predicted",
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
@examples_option("Of selected: labelled examples that are drawn of a dataset, at the most.")
@space_options
@merge_options
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the new adapter (with NEWDATA).")
@click.option(
    "--export", type=click.Path(path_type=Path), help="Folder for all adapters, by name (with --all)."
)
@click.option(
    "--store",
    is_flag=True,
    help="With --all: store all predicted numbers in the bank too, not their coefficients alone; in float32, or "
    "rounded to the --dtype that is given.",
)
@click.option("--name", help="Name of the new dataset; its file's or folder's if not given.")
@click.option(
    "--include-same", is_flag=True, help="Use an entry of the bank even if it holds the very same data."
)
@click.option(
    "--weight-error", is_flag=True, help="With --all: tell how far predictions are from the real weights."
)
@test_options
@column_options
@dtype_option
@format_options
@push_options
@overwrite_option
@json_option
@cluster_options
def predict(
    bank_path: Path,
    newdata: Path | None,
    whole_bank: bool,
    metrics: tuple[str, ...],
    approaches: tuple[str, ...],
    space: str,
    rank: int | str | None,
    **other: Any,
) -> None:
    """Predict an adapter for NEWDATA, or with --all every adapter of the bank by leave-one-out.

    NEWDATA is a file (JSONL, JSON, CSV, Parquet; .gz, .zst) or a folder with a training split, in one of the forms
    that docs/data.md lists.
    """
    if whole_bank == (newdata is not None):
        raise click.UsageError("give NEWDATA, or --all: one of them")
    parameters = Parameters(other)
    if newdata is None:
        combinations = parameters.combinations(metrics, approaches)
        _predict_all(bank_path, [replace(options, space=space, rank=rank) for options in combinations], other)
        return
    if "all" in (*metrics, *approaches) or len(metrics) > 1 or len(approaches) > 1:
        raise click.UsageError("NEWDATA takes one --metric and one --approach")
    (options,) = parameters.combinations(metrics, approaches)
    _predict_new(bank_path, newdata, replace(options, space=space, rank=rank), other)


def _predict_new(bank_path: Path, newdata: Path, options: PredictionOptions, other: dict[str, Any]) -> None:
    import compute
    from bankdb.peft.folder import check_free
    from bankdb.sources.pairs import check_name
    from compute.prediction.predict import dataset_name

    if other["out"] is None:
        raise click.UsageError("NEWDATA needs --out FOLDER, where the adapter is written")
    if other["export"] is not None or other["weight_error"] or other["store"]:
        raise click.UsageError("--export, --store and --weight-error go with --all")
    progress = shown_progress()
    name = other["name"] or dataset_name(newdata)
    check_name(name)
    check_free(other["out"].absolute(), other["overwrite"])
    to = repository_of(other)
    with opened(bank_path) as bank:
        cluster, gguf = cluster_of(other), gguf_of(bank, other)
        check_written(bank, other)
        prediction = compute.predict(
            bank,
            newdata,
            options,
            name=name,
            **rows_of(other),
            include_same=other["include_same"],
            machine=machine_of(other),
            # Threads: most approaches need no workers for one dataset, and processes take a second to start.
            cluster=cluster if cluster.remote else replace(cluster, processes=False),
            memory=cluster.memory,
            progress=progress,
        )
        folder = prediction.save(other["out"], dtype=other["dtype"], overwrite=other["overwrite"], gguf=gguf)
        if not other["as_json"]:
            _tell_prediction(prediction, folder, other["file_format"])
            _tell_space(bank, prediction)
            tell_gguf(gguf)
        assessed = assess_written(bank, folder, newdata, other, progress)
    pushed = push_written(to, folder, other)
    if other["as_json"]:
        print_json(_prediction_record(prediction, folder) | assessed | pushed)


def _tell_space(bank: AdapterBank, prediction: Prediction) -> None:
    """Say where factors are averaged apart that began apart."""
    from bankdb.initialisation.shared import advice_of

    used = [one for one, share in zip(prediction.adapters, prediction.coefficients, strict=True) if share]
    if prediction.delta is None and (advice := advice_of(bank, used)):
        tell(f"note: {advice}", err=True)


def _prediction_record(prediction: Prediction, folder: Path) -> dict[str, Any]:
    delta = prediction.delta
    return {
        "name": prediction.name,
        "folder": str(folder),
        "metric": prediction.metric,
        "approach": prediction.options.approach,
        **({} if prediction.fitted is None else {"fitted": prediction.fitted}),
        "effective_sources": prediction.effective_sources,
        "left_out": list(prediction.left_out),
        "novelty": None if prediction.novelty is None else prediction.novelty.record(),
        "sources": {name: weight for name, weight, _ in prediction.sources()},
        **({} if delta is None else {"rank": delta.form.layout.rank, **_retained(delta.retained)}),
    }


def _tell_prediction(prediction: Prediction, folder: Path, file_format: str) -> None:
    used = prediction.sources()
    delta = prediction.delta
    rows = [(name, weight, _number(distance)) for name, weight, distance in used[:_LISTED]]
    rest = len(used) - len(rows)
    print_table(("source", "coefficient", f"distance ({metric_text(prediction.metric)})"), rows)
    if rest:
        tell(f"and {rest} more sources")
    tell(
        f"effective number of sources: {prediction.effective_sources:.2f} of "
        f"{len(prediction.adapters) - len(prediction.left_out)}"
    )
    _tell_negative([weight for _, weight, _ in used])
    _tell_choice(prediction.fitted or {})
    if delta is not None:
        _tell_retained(delta.form.layout.rank, [delta.retained])
    tell(f"wrote {folder}/, {what_loads(file_format)}")


def _tell_negative(weights: Sequence[float]) -> None:
    """Tell that the combination is not convex, where it is not."""
    negative = [weight for weight in weights if weight < 0]
    if negative:
        tell(
            f"{len(negative)} of {len(weights)} coefficients are negative, {sum(negative):.4g} in all: the combination "
            "is not convex, and the effective number of sources is but a measure of its coefficients' size"
        )


def _tell_choice(fitted: Mapping[str, Any]) -> None:
    """Tell which candidate was chosen by labels, and what the others came to."""
    if "losses" not in fitted:
        return
    best = fitted["losses"][fitted["chosen"]]
    others = sorted((loss, name) for name, loss in fitted["losses"].items() if loss > best)
    found = (f"{name} {loss:.4g}" for loss, name in [*others[:1], *others[-1:]][: len(others)])
    tell(
        f"chosen on {fitted['examples']} labelled examples: {fitted['chosen']}, {best:.4g} nats an answer token; of "
        f"{len(fitted['losses'])} candidates the next and the last: {', '.join(found) or 'none'}"
    )


def _retained(energies: Mapping[str, float]) -> dict[str, Any]:
    return {"retained_energy": dict(energies)}


def _tell_retained(rank: int, retained: Sequence[Mapping[str, float]]) -> None:
    values = [value for energies in retained for value in energies.values()]
    mean, least = sum(values) / len(values), min(values)
    tell(
        f"products cut to rank {rank}: retained energy of a module {mean:.4f} on average, {least:.4f} at least"
    )


def _predict_all(bank_path: Path, chosen: list[PredictionOptions], other: dict[str, Any]) -> None:
    import compute
    from compute.prediction.session import one_cluster

    if other["out"] is not None or other["name"] is not None or other["include_same"]:
        raise click.UsageError(
            "--out, --name and --include-same go with NEWDATA; with --all use --export FOLDER"
        )
    if other["export"] is not None and len(chosen) > 1:
        raise click.UsageError("--export takes one metric and one approach")
    if chosen[0].space == "delta":
        _predict_all_delta(bank_path, chosen[0], other)
        return
    progress, store = shown_progress(), None
    if other["store"]:
        store = "float32" if other["dtype"] == "source" else other["dtype"]
    with opened(bank_path) as bank, one_cluster(bank, cluster_of(other), progress) as cluster:
        gguf = gguf_of(bank, other)
        made = compute.predict_all(
            bank,
            chosen,
            labels=labels_of(other),
            cluster=cluster,
            weight_errors=other["weight_error"],
            store=store,
            progress=progress,
        )
        if other["export"] is not None:
            made[0].save(
                other["export"],
                dtype=other["dtype"],
                overwrite=other["overwrite"],
                gguf=gguf,
                cluster=cluster,
                progress=progress,
            )
    _tell_all(made, other)
    if not other["as_json"]:
        tell_gguf(gguf)


def _predict_all_delta(bank_path: Path, options: PredictionOptions, other: dict[str, Any]) -> None:
    import compute
    from bankdb.errors import ParameterError

    if other["export"] is None:
        raise ParameterError(
            "space: with --all, delta is written as folders alone, no --export found; give --export FOLDER"
        )
    if other["store"]:
        raise click.UsageError("--store is of combined factors; leave it out with --space delta")
    if other["weight_error"]:
        raise click.UsageError("--weight-error is of combined factors; leave it out with --space delta")
    progress = shown_progress()
    with opened(bank_path) as bank:
        cluster, gguf = cluster_of(other), gguf_of(bank, other)
        found = compute.coefficients(
            bank, options, labels=labels_of(other), cluster=cluster, progress=progress
        )
        made = compute.export_delta(
            bank,
            found,
            other["export"],
            dtype=other["dtype"],
            overwrite=other["overwrite"],
            gguf=gguf,
            memory=cluster.memory,
            progress=progress,
        )
    _tell_delta(found, made, other)
    if not other["as_json"]:
        tell_gguf(gguf)


def _tell_delta(found: Coefficients, made: list[DeltaExport], other: dict[str, Any]) -> None:
    import numpy as np

    effective = float(np.mean(found.effective))
    if other["as_json"]:
        print_json(
            {
                "metric": found.metric,
                "approach": found.options.approach,
                "effective_sources": effective,
                "export": str(other["export"]),
                "adapters": {one.folder.name: {"rank": one.rank, **_retained(one.retained)} for one in made},
            }
        )
        return
    print_table(
        ("metric", "approach", "effective sources"),
        [(metric_text(found.metric), found.options.approach, effective)],
    )
    _tell_retained(max(one.rank for one in made), [one.retained for one in made])
    tell(f"wrote {len(made)} folders under {other['export']}/, {what_loads(other['file_format'])}")


def _tell_all(made: list[PredictedBank], other: dict[str, Any]) -> None:
    export = other["export"]
    rows = [_combination_summary(predicted) for predicted in made]
    if other["as_json"]:
        print_json({"predictions": rows, "export": None if export is None else str(export)})
        return
    headings = ["run", "metric", "approach", "effective sources", "relative weight error"]
    keep = headings if any(row["relative_error"] is not None for row in rows) else headings[:-1]
    body = [
        (
            row["run"],
            metric_text(row["metric"]),
            row["approach"],
            row["effective_sources"],
            row["relative_error"],
        )[: len(keep)]
        for row in rows
    ]
    print_table(keep, body)
    count = len(made[0].coefficients.adapters)
    tell(f"{count} adapters predicted by leave-one-out with each")
    if export is None:
        tell(
            "their coefficients are stored; `bank export NAME --prediction RUN --out FOLDER` makes any of them"
        )
    if export is not None:
        tell(f"wrote {count} folders under {export}/, {what_loads(other['file_format'])}")


def _combination_summary(predicted: PredictedBank) -> dict[str, Any]:
    import numpy as np

    found = predicted.coefficients
    error = predicted.relative_error
    return {
        "metric": found.metric,
        "approach": found.options.approach,
        "leave_out": found.options.leave_out,
        "effective_sources": float(np.mean(found.effective)),
        "relative_error": None if error is None else _number(float(np.nanmean(error))),
        "run": predicted.run.id,
        "coefficients": str(predicted.path / "coefficients"),
        "array": None if predicted.stored is None else str(predicted.path / "adapters"),
        "stored": predicted.stored,
    }


def _number(value: float) -> float | None:
    """Return a number, or None where there is none to show."""
    return float(value) if math.isfinite(value) else None


COMMANDS = (predict,)
