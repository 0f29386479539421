"""Runs of predictions. A prediction is its coefficients: they are stored, and an adapter is made when it is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays.chunks import read_chunks, write_chunks
from bankdb.arrays.metadata import ArrayLayout
from bankdb.arrays.remote import Location
from bankdb.arrays.zarr_arrays import ensure_group
from bankdb.bank import AdapterBank
from bankdb.derived import (
    OLD_PREDICTIONS,
    delete_derived,
    digest_of,
    find_array,
    make_array,
    mark_group,
    marks_of,
    row_of,
    rows_of,
)
from bankdb.errors import BankNotFoundError
from bankdb.progress import Progress
from bankdb.records import AdapterRecord, RunRecord
from compute.approaches.base import Fitted
from compute.approaches.options import PredictionOptions
from compute.combination.panel import check_coefficients
from compute.combination.plan import COEFFICIENT_ROWS

COEFFICIENTS, ADAPTERS = "coefficients", "adapters"
_AGAIN = "run the same `bank predict --all` again"
_SOURCES, _OPTIONS, _FITTED = "sources", "options", "fitted"

Opened = tuple[RunRecord, Location]


def open_run(
    bank: AdapterBank,
    adapters: Sequence[AdapterRecord],
    values: NDArray[np.float64],
    metric: str,
    options: PredictionOptions,
    fitted: Sequence[Fitted] | None,
    progress: Progress,
    labels: str | None = None,
) -> Opened:
    """Find the run of these coefficients over these rows, or begin it and store them.

    The caller holds the compute lock.

    Parameters
    ----------
    values
        Shape (N, N), over the adapters in both directions.
    fitted
        Of an approach that is fitted: what was chosen for each target.
    labels
        Hash of the examples and the base model that the coefficients were chosen by, if they were.

    Returns
    -------
    The run, and the zarr group with `coefficients` (N, N), float32, for workers to read by path.
    """
    weights = values.astype(np.float32)
    layout = _layout(weights)
    old = _old_run(bank, adapters, weights, metric, options)
    if old is not None and _has(bank, group_of(bank, old), layout, old, progress):
        return old, group_of(bank, old)
    inputs = digest_of(
        kind="predictions",
        options=options_key(options),
        metric=metric,
        coefficients=hashlib.sha256(weights.astype("<f4").tobytes()).hexdigest(),
        **({} if labels is None else {"labels": labels, "examples": options.examples}),
        **rows_of(bank, adapters),
    )
    parameters = {
        "metric": metric,
        "approach": options.approach,
        **options.parameters(),
        **({} if labels is None else {"labels": labels}),
        "inputs": inputs,
        "array": f"predictions.zarr/{inputs[:16]}/{COEFFICIENTS}",
    }
    run = bank.runs.begin("predictions", parameters, key={"inputs": inputs})
    path = group_of(bank, run)
    marked = marks_of(bank, path, run.inputs_sha256) is not None
    if not ((marked or run.state == "done") and _has(bank, path, layout, run, progress)):
        _write_coefficients(bank, path, layout, run, weights)
        marked = False
    if not marked:
        chosen = options_key(options) | ({} if labels is None else {"examples": options.examples})
        # Last: what is marked is whole.
        mark_group(bank, path, run.inputs_sha256, _marks(adapters, chosen, fitted))
    return run, path


def _marks(
    adapters: Sequence[AdapterRecord], options: Mapping[str, Any], fitted: Sequence[Fitted] | None
) -> dict[str, Any]:
    """Return what a group says of its coefficients."""
    return {
        _OPTIONS: options,
        _SOURCES: [[record.row, row_of(record)] for record in adapters],
        _FITTED: None if fitted is None else list(fitted),
    }


def _write_coefficients(
    bank: AdapterBank, path: Location, layout: ArrayLayout, run: RunRecord, weights: NDArray[np.float32]
) -> None:
    bank.runs.reopen(run.id)
    ensure_group(bank.array_path("predictions"))
    delete_derived(bank, path)
    make_array(bank, path / COEFFICIENTS, layout, run.inputs_sha256)
    write_chunks(path / COEFFICIENTS, (0, 0), weights)


def _layout(weights: NDArray[np.float32]) -> ArrayLayout:
    targets, sources = weights.shape
    return ArrayLayout(weights.shape, (min(targets, COEFFICIENT_ROWS), sources), "float32")


def group_of(bank: AdapterBank, run: RunRecord) -> Location:
    """Return the place of a run's arrays."""
    array = bank.run_array(run)
    assert array is not None, "runs of predictions name their array"
    return array.parent


def _has(bank: AdapterBank, path: Location, layout: ArrayLayout, run: RunRecord, progress: Progress) -> bool:
    """Whether the coefficients are there, as made for this run.

    Raises
    ------
    BankFormatError
        They are there no more, or damaged.
    """
    place = path / COEFFICIENTS
    if not (path / "zarr.json").is_file():
        return False
    if find_array(bank, place, layout, run.inputs_sha256, progress, old=OLD_PREDICTIONS) is None:
        return False
    check_coefficients(path, read_chunks(place, delete=path, missing=True))
    return True


# -- one prediction of a run -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class StoredRun:
    """A run by its number: what its predictions are made from.

    Attributes
    ----------
    run, path
        The run, and the zarr group of its arrays.
    options, metric
        How the coefficients were made.
    sources
        The N adapters in the order of the coefficients: row, and what tells it from every other.
    fitted
        Of an approach that is fitted: what was chosen for each target.
    """

    run: RunRecord
    path: Location
    options: PredictionOptions
    metric: str
    sources: tuple[tuple[int, str], ...]
    fitted: tuple[Fitted, ...] | None

    def coefficients(self, index: int) -> NDArray[np.float32]:
        """Return a target's coefficients, shape (N,). Raises BankFormatError if they are damaged or gone."""
        row: NDArray[np.float32] = read_chunks(
            self.path / COEFFICIENTS, np.s_[index : index + 1, :], delete=self.path, advice=_AGAIN
        )[0]
        check_coefficients(self.path, row)
        return row


def stored_run(bank: AdapterBank, number: int) -> StoredRun:
    """Return the run of predictions of a number.

    Raises
    ------
    BankNotFoundError
        There is none, it is none of predictions, or what it stored is gone or of version 0.1.0, which kept no list of
        its sources.
    BankFormatError
        What it stored is damaged.
    ParameterError
        Its approach is none that is registered.
    """
    run = bank.runs.get(number)
    if run.kind != "predictions":
        raise BankNotFoundError(
            f"run {number}: a run of predictions was expected, one of {run.kind} found; `bank predict --all` tells the "
            "number of each that it makes"
        )
    path = group_of(bank, run)
    about = marks_of(bank, path, run.inputs_sha256)
    if about is None:
        raise BankNotFoundError(
            f"run {number}: its coefficients are not there, or without the list of their sources, as version 0.1.0 "
            f"stored them; {_AGAIN}, with --export FOLDER for the folders"
        )
    fitted = about[_FITTED]
    return StoredRun(
        run,
        path,
        options_of(about[_OPTIONS]),
        str(json.loads(run.parameters)["metric"]),
        tuple((int(row), str(content)) for row, content in about[_SOURCES]),
        None if fitted is None else tuple(fitted),
    )


# -- keys ------------------------------------------------------------------------------------------------


def options_key(options: PredictionOptions) -> dict[str, Any]:
    """Return the options as the key of stored predictions states them; its second form.

    Written out by hand: what a field is called in the code has no part in what is found again. A new option is
    added here, under a name that stays.
    """
    return {
        "version": 2,
        "metric": options.metric,
        "approach": options.approach,
        "temperature": options.temperature,
        "top_k": options.top_k,
        "compatible": options.compatible,
        "kernel": options.kernel,
        "sigma": options.sigma,
        "protocol": options.protocol,
        "seed": options.seed,
        "knots": options.knots,
        "width": options.width,
        "epochs": options.epochs,
        "leave_out": options.leave_out,
        "space": options.space,
        "rank": options.rank,
        # What came later is stated where it is not the default: keys of before stay what they were.
        **options.merge_method.parameters(),
    }


def options_of(key: Mapping[str, Any]) -> PredictionOptions:
    """Return the options that a key states. Raises ParameterError if the approach is none that is registered."""
    return PredictionOptions(**{name: value for name, value in key.items() if name != "version"})


def _old_run(
    bank: AdapterBank,
    adapters: Sequence[AdapterRecord],
    weights: NDArray[np.float32],
    metric: str,
    options: PredictionOptions,
) -> RunRecord | None:
    """Return the run of the same predictions by version 0.1.0, whose key had another form; it knew sums alone."""
    if not options.merge_method.is_linear:
        return None
    rows = " ".join(f"{record.row}:{record.row_sha256}:{record.scaling}" for record in adapters)
    named = (
        f"metric={options.metric!r}, approach={options.approach!r}, temperature={options.temperature!r}, "
        f"top_k={options.top_k!r}, compatible={options.compatible!r}, kernel={options.kernel!r}, "
        f"sigma={options.sigma!r}, protocol={options.protocol!r}, seed={options.seed!r}, knots={options.knots!r}, "
        f"width={options.width!r}, epochs={options.epochs!r}"
    )
    left_out = "" if options.leave_out == "adapter" else f" leave-out {options.leave_out}"
    digest = hashlib.sha256(rows.encode())
    digest.update(f"{bank.record.scaling} {metric} PredictionOptions({named}){left_out}".encode())
    digest.update(weights.tobytes())
    inputs = digest.hexdigest()
    runs = bank.runs.all("predictions")
    return next((run for run in runs if json.loads(run.parameters).get("inputs") == inputs), None)
