"""Leave-one-out predictions of all N adapters of a bank, stored and saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays.remote import Location
from bankdb.bank import AdapterBank
from bankdb.errors import ParameterError
from bankdb.progress import Progress, SilentProgress
from bankdb.records import PredictionRecord, RunRecord
from bankdb.scaled_rows import sources_of
from bankdb.shown import html_summary, text_summary
from compute.approaches.options import PredictionOptions, each_way
from compute.approaches.weight_errors import weight_space_errors
from compute.cluster.options import Cluster, ClusterLike
from compute.combination.predictions import combine_missing, open_predictions
from compute.labels.answer_labels import LabelOptions
from compute.prediction.coefficients import Coefficients, compute_coefficients, described
from compute.prediction.export import export_all
from compute.prediction.matrices import compute_gram
from compute.prediction.session import computing

if TYPE_CHECKING:
    import xarray


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class PredictedBank:
    """All N leave-one-out predictions, stored.

    Attributes
    ----------
    run
        The run that made them.
    coefficients
        What they are combinations by.
    path
        zarr group with `adapters` (N, p) and `coefficients` (N, N), both float32.
    relative_error
        `norm(predicted - own) / norm(own)` of each target, shape (N,), where it was asked for.
    bank
        The bank that stores them; it has to be open where they are saved.
    """

    run: RunRecord
    coefficients: Coefficients
    path: Location
    relative_error: NDArray[np.float64] | None
    bank: AdapterBank

    def save(
        self,
        folder: str | Path,
        *,
        dtype: str = "source",
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> list[Path]:
        """Write every prediction as `folder/NAME`, which PEFT and vLLM load; what is there of the same run is kept.

        Parameters
        ----------
        dtype
            `source`: that of the adapters combined (float32 if they differ); or float32, float16, bfloat16.
        overwrite
            Replace folders that hold something else.

        Raises
        ------
        ConflictError
            A folder is there that holds something else, and is not to be replaced.
        BankFormatError
            A stored prediction is damaged.
        """
        return export_all(
            self.bank,
            self.run,
            self.coefficients,
            self.path,
            folder,
            dtype=dtype,
            overwrite=overwrite,
            progress=progress,
        )

    def to_xarray(self) -> xarray.Dataset:
        """Return effective sources, and weight errors where there are, by `target`; and the coefficients."""
        import xarray

        table = {"effective_sources": ("target", self.coefficients.effective)}
        if self.relative_error is not None:
            table["relative_error"] = ("target", self.relative_error)
        matrix = self.coefficients.to_xarray().drop_vars("effective_sources")
        return xarray.Dataset({"coefficients": matrix, **table})

    def __repr__(self) -> str:
        """Return what was predicted, how, and where it is."""
        return text_summary(self._title(), self._facts())

    def _repr_html_(self) -> str:
        return html_summary(self._title(), self._facts())

    def _title(self) -> str:
        found = self.coefficients
        return f"PredictedBank {described(found.options)}, {len(found.adapters):,} adapters by leave-one-out"

    def _facts(self) -> dict[str, object]:
        facts: dict[str, object] = {"effective sources": float(np.mean(self.coefficients.effective))}
        if self.relative_error is not None:
            facts["relative weight error"] = float(np.nanmean(self.relative_error))
        return facts | {"run": self.run.id, "array": str(self.path / "adapters")}


@overload
def predict_all(
    bank: AdapterBank,
    options: PredictionOptions | None = ...,
    *,
    labels: LabelOptions | None = ...,
    cluster: ClusterLike = ...,
    weight_errors: bool = ...,
    progress: Progress | None = ...,
) -> PredictedBank: ...


@overload
def predict_all(
    bank: AdapterBank,
    options: Sequence[PredictionOptions],
    *,
    labels: LabelOptions | None = ...,
    cluster: ClusterLike = ...,
    weight_errors: bool = ...,
    progress: Progress | None = ...,
) -> list[PredictedBank]: ...


def predict_all(
    bank: AdapterBank,
    options: PredictionOptions | Sequence[PredictionOptions] | None = None,
    *,
    labels: LabelOptions | None = None,
    cluster: ClusterLike = None,
    weight_errors: bool = False,
    progress: Progress | None = None,
) -> PredictedBank | list[PredictedBank]:
    """Predict every adapter of the bank from all the others, and store the predictions.

    What a run that was killed had finished is not computed again.

    Parameters
    ----------
    options
        Metric, approach and their parameters; of a list, a list of results in its order, made in one pass over the
        adapters.
    labels
        Where the base model computes, for an approach that reads labels; all targets are predicted.
    cluster
        Options, a `distributed.Client`, or None: the default client if there is one, else threads.
    weight_errors
        Also compute, through the Gram matrix, how far each prediction is from the adapter's own weights.

    Raises
    ------
    BankNotFoundError, ParameterError
        The bank is empty, or has a single adapter; or a way is of delta space: see `export_delta`.
    PlanError
        The work does not fit the memory budget.
    ComputeError, BankFormatError
        A piece failed, or a stored row is damaged; what was done is kept.

    Examples
    --------
    >>> predicted = predict_all(bank, PredictionOptions(approach="uniform"), weight_errors=True)
    >>> predicted.to_xarray()["relative_error"].shape
    (6,)
    """
    shown, ways = progress or SilentProgress(), each_way(options)
    if not ways:
        return []
    if labels is not None and labels.targets is not None:
        raise ParameterError(
            "targets: all adapters are predicted; leave the targets out, or use compute.coefficients"
        )
    if any(way.space != "factors" for way in ways):
        raise ParameterError(
            "space: stored predictions are of factors, delta found; export folders: with --export, or export_delta"
        )
    with computing(bank, cluster, shown) as used:
        predicted = _predict_all(bank, ways, used, weight_errors, shown, labels)
    return predicted[0] if options is None or isinstance(options, PredictionOptions) else predicted


def _predict_all(
    bank: AdapterBank,
    ways: Sequence[PredictionOptions],
    cluster: Cluster,
    weight_errors: bool,
    progress: Progress,
    labels: LabelOptions | None,
) -> list[PredictedBank]:
    found = compute_coefficients(bank, ways, cluster, progress, labels)
    adapters = found[0].adapters
    errors: list[NDArray[np.float64] | None] = [None] * len(found)
    if weight_errors:
        gram = compute_gram(bank, cluster, progress)
        targets, size = np.arange(len(adapters)), bank.layout.size
        errors = [weight_space_errors(way.values, gram, targets, size).relative for way in found]
    runs = [
        open_predictions(bank, adapters, way.values, way.metric, way.options, progress, way.labels)
        for way in found
    ]
    combine_missing(bank, runs, sources_of(bank, adapters, progress), cluster, progress)
    for (run, _), way, error in zip(runs, found, errors, strict=True):
        _store_records(bank, run, way, error)
        bank.runs.finish(run.id)
    return [
        PredictedBank(run, way, path, error, bank)
        for (run, path), way, error in zip(runs, found, errors, strict=True)
    ]


def _store_records(
    bank: AdapterBank, run: RunRecord, found: Coefficients, error: NDArray[np.float64] | None
) -> None:
    """Store what each prediction is made of; what an earlier command stored of the same run stays."""
    stored = {record.target: record for record in bank.runs.predictions(run.id)}
    # What was multiplied with: the coefficients in single precision.
    weights = found.values.astype(np.float32)
    records = []
    for index, adapter in enumerate(found.adapters):
        used = np.flatnonzero(weights[index])
        record = PredictionRecord(
            run_id=run.id,
            target=adapter.name,
            sources=tuple(found.adapters[source].row for source in used),
            weights=tuple(float(weight) for weight in weights[index, used]),
            effective_sources=float(found.effective[index]),
            relative_error=None if error is None else float(error[index]),
            exported_to=None,
            export_dtype=None,
        )
        before = stored.get(adapter.name)
        if before is not None:
            record = replace(record, exported_to=before.exported_to, export_dtype=before.export_dtype)
            if error is None:
                record = replace(record, relative_error=before.relative_error)
        records.append(record)
    if records != list(stored.values()):
        bank.runs.store_predictions(records)
